"""The value heads: V, and twin Q heads with one value per token of the vocabulary.

Their products are in the dtype of the hidden states, summed up in float32; values are float32.
They read hidden states that were gathered at decisions, never a whole row. `at_actions` computes
the value of the action taken alone, from one row of the output matrix per decision, without a
vocabulary-wide product; the target network is used through it alone.

| kind | Q_k(h, ·) | parameters of the twin Q heads |
| --- | --- | --- |
| `mlp` | two layers, width -> inner -> vocabulary (the papers) | 2 (width + vocabulary) inner |
| `linear` | one layer, width -> vocabulary | 2 vocabulary · width |
| `tied` | two layers, width -> inner -> width, then the policy's output matrix | 4 width · inner |
| `probabilities` | p(a given h) / π_β(a given h) of a second language model p (Q-SFT) | width |

`tied` heads have no vocabulary-sized matrix of their own: Q_k(h, a) = E[a] · f_k(h) + g_k(h), with
E the output matrix of the language model. **No gradient of the values flows into E.** If it did,
the regression targets would move E at full speed under the target network, whose slowness is what
keeps bootstrapping stable; and the values would change the policy. It also saves a third of the
vocabulary-wide work. With a trunk of the values' own (`value_trunk`) E is the policy's output
matrix too: that trunk starts as a copy of the policy's, so its hidden states fit E as well, and a
second matrix would be moved by no gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Int

from ilql_jax.models.cpu_matmul import matmul_t
from ilql_jax.products import times_kernel
from ilql_jax.sharding import embedding_lookup

NUM_HEADS = 2
SMALLEST_PROBABILITY = 1e-6  # of the policy, where a value is a ratio to it

_per_head = nnx.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)


class VHead(nnx.Module):
    """V(h): two layers, width -> inner -> 1; one layer for kind "linear"."""

    def __init__(self, hidden_size: int, inner_size: int, rngs: nnx.Rngs, kind: str = "mlp"):
        self.kind = kind
        if kind != "linear":
            self.inner = nnx.Linear(hidden_size, inner_size, rngs=rngs)
        # Values start at zero: bootstrapping would have to unlearn a random start.
        self.out = nnx.Linear(
            hidden_size if kind == "linear" else inner_size,
            1,
            kernel_init=nnx.initializers.zeros,
            rngs=rngs,
        )

    def __call__(self, hidden: Float[Array, "... width"]) -> Float[Array, "..."]:
        """Returns V of each state, float32."""
        dtype = hidden.dtype
        if self.kind != "linear":
            inner = times_kernel(hidden, self.inner.kernel[...]) + self.inner.bias[...]
            hidden = jax.nn.gelu(inner).astype(dtype)
        return (times_kernel(hidden, self.out.kernel[...]) + self.out.bias[...])[..., 0]


class QHeads(nnx.Module):
    """Q_k(h, a) for k in {0, 1}: two independent heads of a kind, evaluated together.

    Args:
        hidden_size: Width of h.
        inner_size: Width between the two layers; read by `mlp` and `tied`.
        vocab_size: Number of actions; read by `mlp` and `linear`.
        rngs: For the first layer; the last one starts at zero, and so do all values.
        kind: mlp, linear or tied (see the module).

    Attributes:
        tied_to: [vocab, width], the language model's output matrix. Not a parameter of the heads:
            `with_params` sets it where the kind is "tied"; otherwise None.
    """

    NUM_HEADS = NUM_HEADS

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        vocab_size: int,
        rngs: nnx.Rngs,
        kind: str = "mlp",
    ):
        self.kind = kind
        self.tied_to = nnx.data(None)
        if kind != "linear":
            init = _per_head(rngs.params(), (NUM_HEADS, hidden_size, inner_size))
            self.inner_kernel = nnx.Param(init)
            self.inner_bias = nnx.Param(jnp.zeros((NUM_HEADS, inner_size)))
        if kind == "tied":
            self.map_kernel = nnx.Param(jnp.zeros((NUM_HEADS, inner_size, hidden_size)))
            self.map_bias = nnx.Param(jnp.zeros((NUM_HEADS, hidden_size)))
            self.shared_kernel = nnx.Param(jnp.zeros((NUM_HEADS, inner_size)))
            self.shared_bias = nnx.Param(jnp.zeros(NUM_HEADS))
        else:
            rows = hidden_size if kind == "linear" else inner_size
            self.out_kernel = nnx.Param(jnp.zeros((NUM_HEADS, vocab_size, rows)))
            self.out_bias = nnx.Param(jnp.zeros((NUM_HEADS, vocab_size)))

    def __call__(self, hidden: Float[Array, "... width"]) -> Float[Array, "heads ... vocab"]:
        """Returns the value of every token."""
        if self.kind == "tied":
            mapped, shared = self.mapped(hidden)
            product = matmul_t(mapped.astype(hidden.dtype), self._output_matrix(hidden.dtype))
            return product + shared[..., None]
        features = self._features(hidden).astype(hidden.dtype)
        product = matmul_t(features, self.out_kernel[...].astype(hidden.dtype))
        return product + _by_head(self.out_bias[...], product.ndim)

    def last_layer(
        self, hidden: Float[Array, "... width"]
    ) -> tuple[
        Float[Array, "heads ... features"],
        Float[Array, "heads_or_1 vocab features"],
        Float[Array, "heads vocab"] | None,
    ]:
        """Returns features, matrix and bias of the last layer, for `chunked_cross_entropy`.

        Their product is `self(hidden)`, up to a term that all tokens share (g_k(h), if tied).
        """
        if self.kind == "tied":
            return self.mapped(hidden)[0], self._output_matrix()[None], None
        return self._features(hidden), self.out_kernel[...], self.out_bias[...]

    def at_actions(
        self, hidden: Float[Array, "... width"], action: Int[Array, "..."]
    ) -> Float[Array, "heads ..."]:
        """Returns the values of the actions taken alone."""
        if self.kind == "tied":
            mapped, shared = self.mapped(hidden)
            return (
                jnp.sum(mapped * embedding_lookup(self._output_matrix(), action), axis=-1) + shared
            )
        features = self._features(hidden)
        rows = embedding_lookup(self.out_kernel[...], action)  # [heads, ..., inner]
        return jnp.sum(features * rows, axis=-1) + self.out_bias[...][:, action]

    def _features(self, hidden: Float[Array, "... width"]) -> Float[Array, "heads ... inner"]:
        """Computes the input of the last layer."""
        hidden = jnp.broadcast_to(hidden, (NUM_HEADS, *hidden.shape))
        if self.kind == "linear":
            return hidden
        product = times_kernel(hidden, self.inner_kernel[...])
        return jax.nn.gelu(product + _by_head(self.inner_bias[...], product.ndim))

    def mapped(
        self, hidden: Float[Array, "... width"]
    ) -> tuple[Float[Array, "heads ... width"], Float[Array, "heads ..."]]:
        """Returns f_k(h) and g_k(h) of tied heads."""
        inner = self._features(hidden).astype(hidden.dtype)
        product = times_kernel(inner, self.map_kernel[...])
        mapped = product + _by_head(self.map_bias[...], product.ndim)
        shared = times_kernel(inner, self.shared_kernel[...][..., None])[..., 0]
        return mapped, shared + _by_head(self.shared_bias[...], shared.ndim)

    def _output_matrix(self, dtype: DTypeLike = jnp.float32) -> Float[Array, "vocab width"]:
        if self.tied_to is None:
            raise ValueError(
                "tied Q heads have no output matrix of their own: get them from `with_params`, "
                "which sets `tied_to`."
            )
        return lax.stop_gradient(self.tied_to).astype(dtype)


class ValueProbabilities(nnx.Module):
    """Values as probabilities of a second language model p (Q-SFT, arXiv 2411.05193, sec. 4).

    p has one outcome more than there are tokens, "no token", which takes the probability that low
    values leave over: where p is trained to give a token w of its share of the data, and the rest
    to "no token", p(a|s) = w(s, a) π_β(a|s). So Q(s, a) = p(a|s) / π_β(a|s), in [0, 1], and the
    mean of Q under π_β is V(s) = 1 − p("no token"|s).

    Attributes:
        output_matrix: [vocab, width] of the second language model. Not a parameter of the head:
            `with_params` sets it.
    """

    def __init__(self, hidden_size: int):
        self.none_kernel = nnx.Param(jnp.zeros(hidden_size))
        self.none_bias = nnx.Param(jnp.zeros(()))
        self.output_matrix = nnx.data(None)

    def last_layer(
        self,
    ) -> tuple[Float[Array, "outcomes width"], Float[Array, " outcomes"]]:
        """Returns matrix and bias of the logits; the last outcome is "no token"."""
        matrix = jnp.concatenate([self.output_matrix, self.none_kernel[...][None]])
        bias = jnp.zeros(len(matrix)).at[-1].set(self.none_bias[...])
        return matrix, bias

    def log_probs(
        self, hidden: Float[Array, "... width"]
    ) -> tuple[Float[Array, "... vocab"], Float[Array, "..."]]:
        """Returns log p of every token, and of "no token"."""
        logits = matmul_t(hidden, self.output_matrix.astype(hidden.dtype))
        none = self._none_logit(hidden)
        total = jnp.logaddexp(jax.nn.logsumexp(logits, axis=-1), none)
        return logits - total[..., None], none - total

    def __call__(
        self, hidden: Float[Array, "... width"], policy_logits: Float[Array, "... vocab"]
    ) -> Float[Array, "1 ... vocab"]:
        """Returns Q of every token, in [0, 1]."""
        log_p, _ = self.log_probs(hidden)
        return q_from_log_probs(log_p, jax.nn.log_softmax(policy_logits))[None]

    def v(self, hidden: Float[Array, "... width"]) -> Float[Array, "..."]:
        """Returns V of each state, in [0, 1]."""
        return -jnp.expm1(self.log_probs(hidden)[1])

    def _none_logit(self, hidden: Float[Array, "... width"]) -> Float[Array, "..."]:
        return times_kernel(hidden, self.none_kernel[...][:, None])[..., 0] + self.none_bias[...]


def q_from_log_probs(
    log_p: Float[Array, "..."], log_policy: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns `min(p / π_β, 1)`; tokens that the policy hardly says have hardly a value."""
    smallest = jnp.log(SMALLEST_PROBABILITY)
    return jnp.exp(jnp.minimum(log_p - jnp.maximum(log_policy, smallest), 0.0))


def _by_head(bias: Array, ndim: int) -> Array:
    """Inserts axes after the first, so that a bias [heads, ...] broadcasts to `ndim` axes."""
    return bias.reshape(NUM_HEADS, *[1] * (ndim - bias.ndim), *bias.shape[1:])
