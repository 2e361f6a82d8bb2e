"""Parts of `gpu.py` about networks alone: products, attention, training steps, decoding."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import measuring
from experiments.benchmarks.parts import Found, Part

_LLAMA = {
    "position_encoding": "rotary",
    "norm": "rms_norm",
    "mlp": "swiglu",
    "fused_qkv": False,
    "mlp_bias": False,
}
# Name -> fields of `DecoderConfig`: vocabulary, width, layers, heads, MLP, positions, and others.
SHAPES: dict[str, dict[str, tuple[tuple[int, ...], dict[str, Any]]]] = {
    "full": {
        "gpt2-small": ((50_257, 768, 12, 12, 3072, 1024), {}),
        "gpt2-small-cudnn": ((50_257, 768, 12, 12, 3072, 1024), {"attention": "cudnn"}),
        "gpt2-medium": ((50_257, 1024, 24, 16, 4096, 1024), {}),
        "gpt2-medium-scanned": ((50_257, 1024, 24, 16, 4096, 1024), {"scan_layers": True}),
        "gpt2-medium-remat": ((50_257, 1024, 24, 16, 4096, 1024), {"remat": True}),
        "qwen3-0.6b": (
            (151_936, 1024, 28, 16, 3072, 1024),
            _LLAMA | {"num_kv_heads": 8, "scan_layers": True},
        ),
        "llama-1b": (
            (128_256, 2048, 16, 32, 8192, 1024),
            _LLAMA | {"num_kv_heads": 8, "scan_layers": True},
        ),
        "llama-1b-cudnn": (
            (128_256, 2048, 16, 32, 8192, 1024),
            _LLAMA | {"num_kv_heads": 8, "scan_layers": True, "attention": "cudnn"},
        ),
    },
    "tiny": {
        "gpt2-small": ((97, 32, 2, 2, 64, 64), {}),
        "gpt2-small-cudnn": ((97, 32, 2, 2, 64, 64), {"attention": "cudnn"}),
        "gpt2-small-remat": ((97, 32, 2, 2, 64, 64), {"remat": True}),
        "llama-1b": ((97, 32, 2, 2, 64, 64), _LLAMA | {"num_kv_heads": 1, "scan_layers": True}),
    },
}
CONVERSATIONS = {"full": (8, 64, 256), "tiny": (2,)}
ROWS = {"full": (8, (16, 32, 64, 128)), "tiny": (2, (4,))}
PROMPT_AND_NEW = {"full": (64, 32), "tiny": (16, 8)}  # tokens
# Conversations of the default network: vocabulary, positions, how many, prompts and new tokens.
DEFAULT = {"full": (600, 240, 64, 120, 24), "tiny": (97, 32, 2, 8, 4)}
AT_ONCE = (1, 4, 16)  # steps


def peak(size: str) -> Found:
    """TFLOP/s of a product of two square bfloat16 matrices.

    They are random: over equal numbers a device draws less power, and is clocked higher.
    """
    import jax
    import jax.numpy as jnp

    width = 8192 if size == "full" else 128
    a, b = jax.random.normal(jax.random.key(0), (2, width, width), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    taken = _seconds_a_call(lambda: product(a, b), 20)
    yield {"width": width, "tflops": 2 * width**3 / taken / 1e12}


def attention(size: str) -> Found:
    """Milliseconds of attention over packed rows with its gradients, and errors, for each kind.

    Those of `attention.attend`, and JAX's own kernel that is told the segments, which no network
    here uses. An error is the norm of the difference from float32, as a share.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.gpu.attention import mha

    from ilql_jax.models.attention import attend, packed_causal_mask

    model = model_of(size, "gpt2-small")
    segments = jnp.asarray(_batch(model, ROWS[size][0])[1].segment_ids)
    mask = packed_causal_mask(segments)
    arrays = (4, *segments.shape, model.decoder.num_heads, model.decoder.head_size)
    *qkv, weights = jax.random.normal(jax.random.key(0), arrays, jnp.bfloat16)

    def segmented(q, k, v):
        scale, is_cpu = q.shape[-1] ** -0.5, jax.default_backend() == "cpu"
        return mha(q, k, v, segments, sm_scale=scale, causal=True, interpret=is_cpu)

    def with_gradients(function: Callable) -> Callable:
        def weighted(q, k, v):
            result = function(q, k, v)
            return jnp.sum(weights * result, dtype=jnp.float32), result

        return jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))

    masked = functools.partial(attend, mask=mask)
    with jax.default_matmul_precision("highest"):
        exact = with_gradients(masked)(*(x.astype(jnp.float32) for x in qkv))
    for name, function in (
        ("xla", masked),
        ("cudnn", functools.partial(masked, implementation="cudnn")),
        ("pallas", segmented),
    ):
        program = with_gradients(function)
        errors = [
            float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
            for a, b in zip(*map(jax.tree.leaves, (program(*qkv), exact)), strict=True)
        ]
        yield {f"{name}_error": float(np.max(errors))}
        yield {f"{name}_ms": 1e3 * _seconds_a_call(functools.partial(program, *qkv), 20)}


def evaluation(size: str) -> Found:
    """Conversations that the default network answers a second, best of 16, batches of 64."""
    from ilql_jax.fitting import small_network

    vocab, positions, batch, prompt, new = DEFAULT[size]
    model = small_network(vocab_size=vocab, max_positions=positions)
    policy, contexts = _policy(model, "sampled at 0.6, best of 16", batch, prompt, new)
    first = measuring.seconds(lambda: policy.respond(contexts, range(batch)))
    taken = measuring.seconds(lambda: policy.respond(contexts, range(batch, 2 * batch)))
    yield {
        "conversations": batch,
        "prompt_tokens": prompt,
        "answers_per_second": batch / taken,
        "first_call_seconds": first,
    }


def decoding(conversations: int) -> Part:
    """Part that decodes with a network of GPT-2 small's shape in bfloat16."""

    def part(size: str) -> Found:
        prompt, new = PROMPT_AND_NEW[size]
        yield {"conversations": conversations, "prompt_tokens": prompt, "new_tokens": new}
        model = model_of(size, "gpt2-small")
        for name, how in (
            ("plain", "sampled"),
            ("steered", "sampled, steered by 1"),
            ("best_of_16", "sampled, best of 16"),
        ):
            policy, contexts = _policy(model, how, conversations, prompt, new)
            times = []
            for seeds in (range(conversations), range(1000, 1000 + conversations)):
                begun = time.perf_counter()
                answers = policy.respond(contexts, seeds)
                times.append(time.perf_counter() - begun)
            yield {
                f"{name}_first_call_seconds": times[0],
                f"{name}_tokens_per_second": sum(len(a.tokens) for a in answers) / times[1],
            }

    return part


def determinism(size: str) -> Found:
    """Equal bits: three steps from the same seed, and answers with the same seeds, twice each."""
    import jax

    model = model_of(size, "gpt2-small")

    def trained() -> list[np.ndarray]:
        _, batch = _batch(model, ROWS[size][0])
        step, state = _step(model)
        for _ in range(3):
            state, _ = step(state, batch)
        return [np.asarray(x) for x in jax.tree.leaves(state.params)]

    def written() -> list[list[int]]:
        policy, contexts = _policy(model, "sampled, best of 4", 4, *PROMPT_AND_NEW[size])
        return [answer.tokens.tolist() for answer in policy.respond(contexts, range(4))]

    equal = [np.array_equal(a, b) for a, b in zip(trained(), trained(), strict=True)]
    yield {"training_equal_arrays": f"{sum(equal)} of {len(equal)}"}
    yield {"decoding_is_equal": written() == written()}


def dispatch(size: str) -> Found:
    """Steps a second of a small network (full: the default one), 1, 4 or 16 of them at one call."""
    from ilql_jax import METHODS, TrainConfig
    from ilql_jax.fitting import small_network

    vocab, positions, *_ = DEFAULT[size]
    rows = 4 if size == "full" else 1
    model = small_network(vocab_size=vocab, max_positions=positions)
    _, batch = _batch(model, rows)
    method, train = METHODS["ilql"], TrainConfig(steps=100_000)
    calls = {str(n): _steps_in_calls(model, method, train, batch, n) for n in AT_ONCE}
    taken = measuring.in_turn(
        {name: lambda call=call: measuring.seconds(call) for name, call in calls.items()}, 20
    )
    per_second = {name: max(AT_ONCE) / seconds for name, seconds in taken.items()}
    yield {f"{name}_at_once_steps_per_second": value for name, value in per_second.items()} | {
        "times_faster": per_second[str(max(AT_ONCE))] / per_second["1"]
    }


def _steps_in_calls(model, method, train, batch, count: int) -> Callable[[], int]:
    """Makes a function that takes max(AT_ONCE) steps, as `train` does; it returns those so far."""
    import jax

    from ilql_jax.train_step import init_state, make_train_step, make_train_steps, stack_batches

    make = make_train_step if count == 1 else make_train_steps
    program, state = make(model, method, train), init_state(model, method, train, 0)

    def run() -> int:
        nonlocal state
        pending = None
        for _ in range(max(AT_ONCE) // count):
            batches = batch if count == 1 else stack_batches([batch] * count)
            state, metrics = program(state, batches)
            jax.device_get(pending)
            pending = metrics
        jax.device_get(pending)
        return int(state.step)

    run()  # compiles
    return run


def step(name: str, rows: int | None = None) -> Part:
    """Part that times the papers' step with a network of a shape."""

    def part(size: str) -> Found:
        import jax

        model = model_of(size, name)
        packing, batch = _batch(model, rows or ROWS[size][0])
        start = time.perf_counter()
        function, state = _step(model)
        flops = flops_of_step(model, function, state, batch)
        state, metrics = function(state, batch)
        loss = float(metrics["loss"])
        compiled = time.perf_counter() - start

        def run() -> Any:
            nonlocal state
            state, metrics = function(state, batch)
            return metrics["loss"]

        taken = _seconds_a_call(run, 10 if size == "full" else 2)
        memory = jax.local_devices()[0].memory_stats() or {}
        yield {
            "rows": packing.batch_rows,
            "row_length": packing.row_length,
            "ms": 1e3 * taken,
            "tflops": flops / taken / 1e12,
            "peak_gb": memory.get("peak_bytes_in_use", 0) / 1e9,
            "first_loss": loss,
            "start_seconds": compiled,
        }

    return part


def model_of(size: str, name: str):
    from ilql_jax import DecoderConfig, ModelConfig

    numbers, more = SHAPES[size][name]
    decoder = DecoderConfig(*numbers, compute_dtype="bfloat16", **more)
    # As in the papers: values of every token, a hidden layer of twice the width; tied matrices
    # where a vocabulary would make the twin heads larger than the trunk.
    heads = "mlp" if numbers[0] < 100_000 else "tied"
    return ModelConfig(decoder, 2 * decoder.hidden_size, utterance_q="last", value_heads=heads)


def _random_params(model):
    """Parameters whose value heads say something: fresh ones are zero, and choose nothing."""
    import jax

    from ilql_jax.models import init_params

    def drawn(key):
        params = init_params(model, 0)
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            x + 0.02 * jax.random.normal(k, x.shape, x.dtype)
            for k, x in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, noisy)

    return jax.jit(drawn)(jax.random.key(0))


def _policy(model, decoding: str, batch: int, prompt: int, new: int):
    """A policy that never stops early, and contexts for it."""
    from ilql_jax import DecodingConfig, Policy
    from ilql_jax.losses import steer_logits

    vocab = model.decoder.vocab_size
    allowed = np.arange(vocab) > 0
    policy = Policy(
        model,
        _random_params(model),
        DecodingConfig.parse(decoding),
        stop_token=0,
        allowed=allowed,
        max_utterance=new,
        batch_size=batch,
        steer=steer_logits,
    )
    rng = np.random.default_rng(0)
    return policy, [rng.integers(1, vocab, prompt).astype(np.int32) for _ in range(batch)]


def _batch(model, rows: int):
    """Packing, and a batch of rows as long as the network's context, full of dialogues."""
    from experiments.benchmarks.train_step import Size, make_dialogues
    from ilql_jax.batching import make_batches, packing_for

    length = model.decoder.max_positions
    size = Size(model.decoder, 8 * rows, length // 4, length // 2)
    dialogues = make_dialogues(size)
    packing = packing_for(dialogues, batch_rows=rows, row_length=length)
    return packing, next(make_batches(dialogues, packing, 0))


def _step(model):
    """The papers' train step of a network, and the state before its first."""
    from experiments.benchmarks.train_step import METHOD, TRAIN
    from ilql_jax.train_step import init_state

    return _program(model), init_state(model, METHOD, TRAIN, 0)


def _program(model) -> Callable:
    """The papers' train step of a network."""
    from experiments.benchmarks.train_step import METHOD, TRAIN
    from ilql_jax.train_step import make_train_step

    return make_train_step(model, METHOD.configured(action_chunk=1024), TRAIN)


def flops_of_step(model, program: Callable, state: Any, batch: Any) -> float:
    """FLOPs of a network's products, attention's included, and nothing that is computed again.

    Args:
        model: Shape of the network.
        program: Its train step.
        state: State before the step, or its shapes.
        batch: Input.
    """
    import jax

    from ilql_jax.plan.compile import matrix_flops

    # Products in cuDNN's kernel are not seen.
    decoder = dataclasses.replace(model.decoder, attention="xla", remat=False)
    if decoder != model.decoder:
        program = _program(dataclasses.replace(model, decoder=decoder))
    return matrix_flops(jax.make_jaxpr(program)(state, batch).jaxpr)


def _seconds_a_call(function: Callable[[], Any], calls: int) -> float:
    """Mean over calls that follow each other without waiting, after one to warm up."""
    import jax

    jax.block_until_ready(function())
    start = time.perf_counter()
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls
