"""`ActorCritic`: one trunk, the language-model head, twin Q heads and a V head (ILQL, sec. 4).

With a trunk of its own for the values (as in the code of ILQL and of LMRL-Gym) policy and values
are two transformers, which start the same and share nothing: no gradient of one moves the other.

Outside of the networks parameters are plain nested dicts of arrays: functions over them need no
Flax, and passing them through a jitted step costs less Python than a tree of Flax variables.
`with_params` puts them back into a network where its methods are called.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ilql_jax.models.config import ModelConfig, Params
from ilql_jax.models.decoder import Decoder
from ilql_jax.models.heads import QHeads, ValueProbabilities, VHead, q_from_log_probs


class ActorCritic(nnx.Module):
    """The network of every method; behaviour cloning leaves the value heads untouched."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, inner = config.decoder.hidden_size, config.value_inner_size
        kind = config.value_heads
        self.config = config
        self.trunk = Decoder(config.decoder, rngs)
        if kind == "probabilities":
            self.q = ValueProbabilities(width)
        else:
            self.q = QHeads(width, inner, config.decoder.vocab_size, rngs, kind)
            self.v = VHead(width, inner, rngs, kind)
        if config.value_trunk == "separate":
            self.value_trunk = Decoder(config.value_decoder, rngs)

    @property
    def trunks(self) -> tuple[Decoder, ...]:
        """The trunks; the policy's head is on the first, the value heads are on the last."""
        separate = self.config.value_trunk == "separate"
        return (self.trunk, self.value_trunk) if separate else (self.trunk,)

    def hidden_states(
        self,
        tokens: Int[Array, "batch time"],
        segment_ids: Int[Array, "batch time"],
        positions: Int[Array, "batch time"],
    ) -> tuple[Float[Array, "batch time width"], Float[Array, "batch time width"]]:
        """Returns hidden states of packed rows: the policy's, and the value heads'."""
        hidden = [trunk(tokens, segment_ids, positions) for trunk in self.trunks]
        return hidden[0], hidden[-1]

    def logits_and_q(
        self, policy_state: Float[Array, "... width"], value_state: Float[Array, "... width"]
    ) -> tuple[Float[Array, "... vocab"], Float[Array, "heads ... vocab"]]:
        """Returns logits of the next token, and Q of every token from each head.

        Tied heads and the policy go through the output matrix together: it is read once.

        Args:
            policy_state: Hidden states of the policy's trunk.
            value_state: Those of the trunk that the value heads read.
        """
        if self.config.value_heads == "probabilities":
            logits = self.trunk.logits(policy_state)
            return logits, self.q(value_state, logits)
        if self.config.value_heads != "tied":
            return self.trunk.logits(policy_state), self.q(value_state)
        mapped, shared = self.q.mapped(value_state)
        together = jnp.concatenate([policy_state[None], mapped.astype(policy_state.dtype)])
        logits, *q = self.trunk.logits(together)
        return logits, jnp.stack(q) + shared[..., None]

    def q_at_actions(
        self,
        policy_state: Float[Array, "... width"],
        value_state: Float[Array, "... width"],
        action: Int[Array, "..."],
    ) -> Float[Array, "heads ..."]:
        """Returns Q of the actions taken alone, from each head."""
        if self.config.value_heads != "probabilities":
            return self.q.at_actions(value_state, action)
        log_policy = jax.nn.log_softmax(self.trunk.logits(policy_state))
        log_p, _ = self.q.log_probs(value_state)
        taken = (
            jnp.take_along_axis(x, action[..., None], axis=-1)[..., 0] for x in (log_p, log_policy)
        )
        return q_from_log_probs(*taken)[None]

    def state_value(self, value_state: Float[Array, "... width"]) -> Float[Array, "..."]:
        """Returns V of each state."""
        is_probability = self.config.value_heads == "probabilities"
        return self.q.v(value_state) if is_probability else self.v(value_state)


def init_params(config: ModelConfig, seed: int) -> Params:
    """Initializes parameters from a seed.

    Those of the policy and of the heads do not depend on `value_trunk`.
    """
    params = nnx.to_pure_dict(nnx.state(ActorCritic(config, nnx.Rngs(seed))))
    if config.value_trunk == "separate":
        params["value_trunk"] = copy_for_values(config, params["trunk"])
    return params


def copy_for_values(config: ModelConfig, trunk: Params) -> Params:
    """Copies the policy's trunk: the start of the values' own.

    Its output matrix comes along only where the values' trunk is a language model too.
    """
    left_out = () if config.value_heads == "probabilities" else ("output_embedding",)
    return {
        name: jax.tree.map(jnp.copy, part) for name, part in trunk.items() if name not in left_out
    }


def abstract_params(config: ModelConfig) -> Params:
    """Returns shapes and dtypes of the parameters; nothing is computed."""
    return nnx.to_pure_dict(_layout(config)[1])


def with_params(config: ModelConfig, params: Params) -> ActorCritic:
    """Builds the network of this shape around these parameters."""
    graph, shapes = _layout(config)
    state = jax.tree.map(lambda leaf: leaf, shapes)  # a copy, which is written into
    nnx.replace_by_pure_dict(state, params)
    model = nnx.merge(graph, state)
    if config.value_heads == "tied":
        model.q.tied_to = model.trunk.output_matrix()
    if config.value_heads == "probabilities":
        model.q.output_matrix = model.value_trunk.output_matrix()
    return model


@functools.cache
def _layout(config: ModelConfig):
    """Traces structure and shapes of a network once: it takes a tenth of a second to seconds."""
    return nnx.split(nnx.eval_shape(lambda: ActorCritic(config, nnx.Rngs(0))))
