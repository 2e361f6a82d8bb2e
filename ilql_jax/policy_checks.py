"""Checks of what a policy is made of, before anything is computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from ilql_jax.decoding_config import DecodingConfig, PolicyError
from ilql_jax.lookahead import Replies
from ilql_jax.models import ModelConfig, Params, abstract_params


def check_tokens(config: ModelConfig, stop_token: int, allowed: Bool[np.ndarray, " vocab"]) -> None:
    """Raises `PolicyError` for tokens outside of the network's vocabulary."""
    vocab = config.decoder.vocab_size
    if not 0 <= stop_token < vocab:
        raise PolicyError(
            f"stop_token is {stop_token}, but the network's vocabulary is 0 to {vocab - 1}."
        )
    if np.shape(allowed) != (vocab,):
        raise PolicyError(
            f"allowed has shape {np.shape(allowed)}, but must say of each of the network's {vocab} "
            "tokens whether it may be written."
        )
    if not np.any(allowed):
        raise PolicyError("allowed is false for all tokens: none could be written.")


def check_params(config: ModelConfig, params: Params) -> None:
    """Raises `PolicyError` for parameters of another shape than the network's."""
    needed, given = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (abstract_params(config), params)
    )
    for name in sorted({*needed, *given}):
        if needed.get(name) != given.get(name):
            raise PolicyError(
                f"params: {name} has shape {given.get(name)}, but a network of this model_config "
                f"has {needed.get(name)} there (None = no such array)."
            )


def check_decoding(
    config: ModelConfig, params: Params, decoding: DecodingConfig, replies: Replies | None
) -> None:
    """Raises `PolicyError` for a decoding that needs what the network lacks, or is not known."""
    if decoding.lookahead and replies is None:
        raise PolicyError(
            f"decoding '{decoding}' imagines what the other side says, but it is not known how "
            "its turns are laid out: give Policy(replies=...), or decode without looking ahead."
        )
    if decoding.steering_strength and config.utterance_q != "last":
        raise PolicyError(
            f"decoding '{decoding}' steers every token by its value, but with utterance_q "
            f"'{config.utterance_q}' the Q heads value whole utterances: train with utterance_q "
            "'last' and credit 'token', or decode by 'best of'."
        )
    if decoding.reads_values and not learned_values(params):
        raise PolicyError(
            f"decoding '{decoding}' chooses by values, but the network has learned none: its Q "
            "heads are still all zero. Use 'sampled' or 'greedy', or a method that learns values."
        )


def learned_values(params: Params) -> bool:
    """False for Q heads as they are initialized: all that their last layer gives is zero."""
    last_layer = [x for name, x in params["q"].items() if not name.startswith("inner_")]
    return any(bool(jnp.any(x)) for x in last_layer)
