"""`ActorCritic`: one trunk, the language-model head, twin Q heads and a V head (ILQL, sec. 4).

With a trunk of its own for the values (as in the code of ILQL and of LMRL-Gym) policy and values
are two transformers, which start the same and share nothing: no gradient of one moves the other.

Outside of the networks parameters are plain nested dicts of arrays: functions over them need no
Flax, and passing them through a jitted step costs less Python than a tree of Flax variables.
`with_params` puts them back into a network where its methods are called.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ilql_jax.models.config import ModelConfig, Params
from ilql_jax.models.decoder import Decoder
from ilql_jax.models.heads import QHeads, VHead


class ActorCritic(nnx.Module):
    """The network of every method; behaviour cloning leaves the value heads untouched."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, inner, kind = (
            config.decoder.hidden_size,
            config.value_inner_size,
            config.value_heads,
        )
        self.config = config
        self.trunk = Decoder(config.decoder, rngs)
        self.q = QHeads(width, inner, config.decoder.vocab_size, rngs, kind)
        self.v = VHead(width, inner, rngs, kind)
        if config.value_trunk == "separate":
            self.value_trunk = Decoder(config.value_decoder, rngs)

    @property
    def trunks(self) -> tuple[Decoder, ...]:
        """What a conversation is read by: the policy looks at the first, the values at the last."""
        separate = self.config.value_trunk == "separate"
        return (self.trunk, self.value_trunk) if separate else (self.trunk,)

    def hidden_states(
        self,
        tokens: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        positions: Int[Array, "batch time"],
    ) -> tuple[Float[Array, "batch time width"], Float[Array, "batch time width"]]:
        """Of packed rows: what the policy reads, and what the value heads read."""
        hidden = [trunk(tokens, segment_ids, positions) for trunk in self.trunks]
        return hidden[0], hidden[-1]

    def logits_and_q(
        self, of_policy: Float[Array, "... width"], of_values: Float[Array, "... width"]
    ) -> tuple[Float[Array, "... vocab"], Float[Array, "heads ... vocab"]]:
        """Scores of the next token, and its value from each head.

        Tied heads and the policy go through the output matrix together: it is read once.
        """
        if self.config.value_heads != "tied":
            return self.trunk.logits(of_policy), self.q(of_values)
        mapped, shared = self.q.mapped(of_values)
        together = jnp.concatenate([of_policy[None], mapped.astype(of_policy.dtype)])
        logits, *q = self.trunk.logits(together)
        return logits, jnp.stack(q) + shared[..., None]


def init_params(config: ModelConfig, seed: int) -> Params:
    """Fresh parameters; those of the heads and of the policy are the same with either trunk."""
    params = nnx.to_pure_dict(nnx.state(ActorCritic(config, nnx.Rngs(seed))))
    if config.value_trunk == "separate":
        params["value_trunk"] = copy_for_values(params["trunk"])
    return params


def copy_for_values(trunk: Params) -> Params:
    """What a trunk of the values' own starts from: a policy's, without its output matrix."""
    return {
        name: jax.tree.map(jnp.copy, each)
        for name, each in trunk.items()
        if name != "output_embedding"
    }


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters."""
    return jax.eval_shape(lambda: init_params(config, 0))


def with_params(config: ModelConfig, params: Params) -> ActorCritic:
    """The network of this shape with these parameters."""
    model = _fill(lambda: ActorCritic(config, nnx.Rngs(0)), params)
    if config.value_heads == "tied":
        model.q.tied_to = model.trunk.output_matrix()
    return model


def target_q_heads(config: ModelConfig, target_q: Params, params: Params) -> QHeads:
    """The target network: Q heads with the parameters `target_q`.

    They read the hidden states of the trunk that is being trained, also of one of the values' own:
    the trunk is not copied (LMRL-Gym copies it). That saves a third pass over every batch.

    Tied heads read the output matrix of `params`, those being trained, as they are now: only the
    map before it is copied. The matrix is moved by the policy's loss alone, not by the values (see
    `heads.py`), so the targets chase nothing that is learned from them.
    """
    heads = _fill(lambda: ActorCritic(config, nnx.Rngs(0)).q, target_q)
    if config.value_heads == "tied":
        heads.tied_to = with_params(config, params).trunk.output_matrix()
    return heads


def _fill(create, params: Params):
    module = nnx.eval_shape(create)
    graph, state = nnx.split(module)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)
