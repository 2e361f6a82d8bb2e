"""The value heads: V, and twin Q heads with one value per token of the vocabulary.

They see hidden states that were gathered at decisions, never a whole row. `QHeads.taken` asks for
the value of the action taken alone, with one row of the output matrix per decision: no
vocabulary-wide product. That is all the target network is ever asked for.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int


class VHead(nnx.Module):
    """V(h): two layers, width -> inner -> 1."""

    def __init__(self, hidden_size: int, inner_size: int, rngs: nnx.Rngs):
        self.inner = nnx.Linear(hidden_size, inner_size, rngs=rngs)
        # Values start at zero: a random start would have to be unlearned by bootstrapping.
        self.out = nnx.Linear(inner_size, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, hidden: Float[Array, "... width"]) -> Float[Array, "..."]:
        return self.out(jax.nn.gelu(self.inner(hidden)))[..., 0]


class QHeads(nnx.Module):
    """Q_k(h, a) for k in {0, 1}: two independent MLPs of two layers, evaluated together."""

    NUM_HEADS = 2

    def __init__(self, hidden_size: int, inner_size: int, vocab_size: int, rngs: nnx.Rngs):
        key = rngs.params()
        init = nnx.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
        heads = self.NUM_HEADS
        self.inner_kernel = nnx.Param(init(key, (heads, hidden_size, inner_size)))
        self.inner_bias = nnx.Param(jnp.zeros((heads, inner_size)))
        self.out_kernel = nnx.Param(jnp.zeros((heads, vocab_size, inner_size)))
        self.out_bias = nnx.Param(jnp.zeros((heads, vocab_size)))

    def _inner(self, hidden: Float[Array, "... width"]) -> Float[Array, "heads ... inner"]:
        product = jnp.einsum("...d,kdm->k...m", hidden, self.inner_kernel[...])
        bias = self.inner_bias[...].reshape(
            self.NUM_HEADS, *[1] * (product.ndim - 2), product.shape[-1]
        )
        return jax.nn.gelu(product + bias)

    def __call__(self, hidden: Float[Array, "... width"]) -> Float[Array, "heads ... vocab"]:
        """Values of every token."""
        inner = self._inner(hidden)
        bias = self.out_bias[...].reshape(
            self.NUM_HEADS, *[1] * (inner.ndim - 2), self.out_bias.shape[-1]
        )
        return jnp.einsum("k...m,kvm->k...v", inner, self.out_kernel[...]) + bias

    def taken(
        self, hidden: Float[Array, "... width"], action: Int[Array, "..."]
    ) -> Float[Array, "heads ..."]:
        """Values of the actions taken alone."""
        inner = self._inner(hidden)
        rows = self.out_kernel[...][:, action]  # [heads, ..., inner]
        return jnp.sum(inner * rows, axis=-1) + self.out_bias[...][:, action]
