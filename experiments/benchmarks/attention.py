"""Compares our attention on CPU with `jax.nn.dot_product_attention`, forward and backward, in turn.

    python experiments/benchmarks/attention.py

Prints the ratio (theirs / ours) of the median times for some shapes of small networks.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from ilql_jax.models.attention import attend

SHAPES = ((4, 256, 4, 16), (16, 256, 4, 24), (32, 128, 4, 24), (16, 256, 2, 32))
ROUNDS = 20


def ours(q, k, v, mask):
    return attend(q, k, v, mask)


def theirs(q, k, v, mask):
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])


def main() -> None:
    print("rows, time, heads, head size: theirs / ours, milliseconds of ours")
    for batch, length, heads, size in SHAPES:
        q, k, v = jax.random.normal(jax.random.key(0), (3, batch, length, heads, size))
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
        steps = {
            name: jax.jit(jax.grad(lambda q, k, v, f=function, m=mask: (f(q, k, v, m) ** 2).sum()))
            for name, function in (("ours", ours), ("theirs", theirs))
        }
        times = {name: [] for name in steps}
        for _ in range(ROUNDS + 1):
            for name, step in steps.items():
                start = time.perf_counter()
                step(q, k, v).block_until_ready()
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(each[1:]) for name, each in times.items()}
        ratio = medians["theirs"] / medians["ours"]
        print(f"{batch, length, heads, size}: {ratio:.2f}, {medians['ours'] * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
