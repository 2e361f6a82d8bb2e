"""One accelerator, looked at in ten minutes: does everything run there, and how fast.

    python experiments/benchmarks/gpu.py --json=gpu.json
    python experiments/benchmarks/gpu.py --parts=evaluation,step --limit=90

Each part is a process of its own with its own limit, so one that fails, hangs or takes all memory
costs the others nothing; figures go into the file (a JSON object a line) and onto the terminal as
they come. What matters most comes first:

| part | shows |
| --- | --- |
| `peak` | TFLOP/s of a large bfloat16 product; what MFU is a share of |
| `evaluation` | `Policy` with the default network: conversations answered a second |
| `decoding-N` | GPT-2 small with N conversations: plain, steered, best of 16 |
| `generate` | Hugging Face's `generate` on the same shape, where torch sees the accelerator |
| `determinism` | a training twice, and a decoding twice: equal bits |
| `dispatch` | steps a second of the default network, 1, 4 or 16 of them at one call |
| `eager` | PyTorch eager on the batch of `train_step.py`, where torch sees the accelerator |
| `step-NAME` | the papers' ILQL step on rows of 1,024 tokens: ms, MFU, peak memory |
| `rows-N` | the same for GPT-2 small with more rows, until they do not fit |

A step's FLOPs are those of the matrix products in the traced program. On a machine without an
accelerator `--size=tiny` rehearses it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import measuring

LIMIT = 90.0  # seconds of a part, compilation included
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
    },
    "tiny": {
        "gpt2-small": ((97, 32, 2, 2, 64, 64), {}),
        "llama-1b": ((97, 32, 2, 2, 64, 64), _LLAMA | {"num_kv_heads": 1, "scan_layers": True}),
    },
}
CONVERSATIONS = {"full": (8, 64, 256), "tiny": (2,)}
ROWS = {"full": (8, (16, 32, 64, 128)), "tiny": (2, (4,))}
PROMPT, NEW = 64, 32
AT_ONCE = (1, 4, 16)  # steps

Part = Callable[[str], Mapping[str, Any]]


# --- parts --------------------------------------------------------------------------------------


def peak(size: str) -> dict[str, Any]:
    """TFLOP/s of a product of two square bfloat16 matrices."""
    import jax
    import jax.numpy as jnp

    width = 8192 if size == "full" else 128
    a = jnp.ones((width, width), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    taken = _seconds_a_call(lambda: product(a), 20)
    return {"width": width, "tflops": 2 * width**3 / taken / 1e12}


def evaluation(size: str) -> dict[str, Any]:
    """Conversations that the default network answers a second, best of 16, batches of 64."""
    from ilql_jax.fitting import small_network

    model = small_network(vocab_size=600, max_positions=240)
    batch = 64 if size == "full" else 2
    policy, contexts = _policy(model, "sampled at 0.6, best of 16", batch, new=24, prompt=120)
    first = measuring.seconds(lambda: policy.respond(contexts, range(batch)))
    taken = measuring.seconds(lambda: policy.respond(contexts, range(batch, 2 * batch)))
    return {
        "conversations": batch,
        "answers_per_second": batch / taken,
        "first_call_seconds": first,
    }


def decoding(conversations: int) -> Part:
    """Part that decodes with a network of GPT-2 small's shape in bfloat16."""

    def part(size: str) -> dict[str, Any]:
        found: dict[str, Any] = {"conversations": conversations}
        model = _model(size, "gpt2-small")
        for name, how in (
            ("plain", "sampled"),
            ("steered", "sampled, steered by 1"),
            ("best_of_16", "sampled, best of 16"),
        ):
            policy, contexts = _policy(model, how, conversations, NEW, min(PROMPT, 24))
            found[f"{name}_first_call_seconds"] = measuring.seconds(
                lambda policy=policy, contexts=contexts: policy.respond(
                    contexts, range(len(contexts))
                )
            )
            start = time.perf_counter()
            answers = policy.respond(contexts, range(1000, 1000 + len(contexts)))
            taken = time.perf_counter() - start
            found[f"{name}_tokens_per_second"] = sum(len(a.tokens) for a in answers) / taken
        return found

    return part


def generate(size: str) -> dict[str, Any]:
    """Tokens a second of Hugging Face's `generate`, sampled, for each number of conversations."""
    torch = _torch()
    from transformers import GPT2Config, GPT2LMHeadModel

    vocab, width, layers, heads, _, positions = SHAPES[size]["gpt2-small"][0]
    shape = GPT2Config(
        vocab_size=vocab, n_embd=width, n_layer=layers, n_head=heads, n_positions=positions
    )
    model = GPT2LMHeadModel(shape).eval().to("cuda", torch.bfloat16)
    found = {}
    for conversations in CONVERSATIONS[size]:
        prompts = torch.randint(1, vocab, (conversations, min(PROMPT, 24)), device="cuda")

        @torch.no_grad()
        def write(prompts=prompts) -> None:
            model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                pad_token_id=0,
            )
            torch.cuda.synchronize()

        write()
        found[f"{conversations}_tokens_per_second"] = conversations * NEW / measuring.seconds(write)
    return found


def determinism(size: str) -> dict[str, Any]:
    """Equal bits: three steps from the same seed, and answers with the same seeds, twice each."""
    import jax

    model = _model(size, "gpt2-small")

    def trained() -> list[np.ndarray]:
        step, state, batch = _step(model, *_batch(model, ROWS[size][0]))
        for _ in range(3):
            state, _ = step(state, batch)
        return [np.asarray(x) for x in jax.tree.leaves(state.params)]

    def written() -> list[list[int]]:
        policy, contexts = _policy(model, "sampled, best of 4", 4, NEW, 24)
        return [answer.tokens.tolist() for answer in policy.respond(contexts, range(4))]

    equal = [np.array_equal(a, b) for a, b in zip(trained(), trained(), strict=True)]
    return {
        "training_equal_arrays": f"{sum(equal)} of {len(equal)}",
        "decoding_is_equal": written() == written(),
    }


def dispatch(size: str) -> dict[str, Any]:
    """Steps a second of a small network (full: the default one), 1, 4 or 16 of them at one call."""
    from ilql_jax import METHODS, TrainConfig
    from ilql_jax.fitting import small_network

    vocab, positions, rows = (600, 240, 4) if size == "full" else (97, 32, 1)
    model = small_network(vocab_size=vocab, max_positions=positions)
    _, batch = _batch(model, rows)
    method, train = METHODS["ilql"], TrainConfig(steps=100_000)
    calls = {str(n): _steps_in_calls(model, method, train, batch, n) for n in AT_ONCE}
    taken = measuring.in_turn(
        {name: lambda call=call: measuring.seconds(call) for name, call in calls.items()}, 20
    )
    per_second = {name: max(AT_ONCE) / seconds for name, seconds in taken.items()}
    return {f"{name}_at_once_steps_per_second": value for name, value in per_second.items()} | {
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


def eager(size: str) -> dict[str, Any]:
    """PyTorch eager on the 8 dialogues of `train_step.py`, float32, and ours on the same."""
    torch = _torch()
    from experiments.benchmarks import train_step
    from experiments.benchmarks.torch_ilql import Trainer

    name = "gpt2" if size == "full" else "tiny"
    shape = train_step.SIZES[name]
    trainer = Trainer(
        shape.model("mlp"),
        train_step.METHOD.config,
        train_step.TRAIN,
        train_step.make_weights(shape),
        train_step.make_dialogues(shape),
        train_step.DISCOUNT,
    )
    trainer.model.to("cuda")
    trainer.batch = {name: tensor.to("cuda") for name, tensor in trainer.batch.items()}
    ours = train_step.make_ours(name, "mlp", rows=4, chunk=1024)

    def theirs() -> None:
        trainer.step()
        torch.cuda.synchronize()

    for step in (theirs, ours):
        for _ in range(3):
            step()
    taken = measuring.in_turn(
        {"eager": lambda: measuring.seconds(theirs), "ours": lambda: measuring.seconds(ours)}, 10
    )
    return {
        "eager_ms": 1e3 * taken["eager"],
        "ours_ms": 1e3 * taken["ours"],
        "times_faster": taken["eager"] / taken["ours"],
    }


def step(name: str, rows: int | None = None) -> Part:
    """Part that times the papers' step with a network of a shape."""

    def part(size: str) -> dict[str, Any]:
        import jax

        from ilql_jax.plan.compile import matrix_flops

        model = _model(size, name)
        packing, batch = _batch(model, rows or ROWS[size][0])
        start = time.perf_counter()
        function, state, batch = _step(model, packing, batch)
        flops = matrix_flops(jax.make_jaxpr(function)(state, batch).jaxpr)
        state, metrics = function(state, batch)
        loss = float(metrics["loss"])
        compiled = time.perf_counter() - start

        def run() -> Any:
            nonlocal state
            state, metrics = function(state, batch)
            return metrics["loss"]

        taken = _seconds_a_call(run, 10 if size == "full" else 2)
        memory = jax.local_devices()[0].memory_stats() or {}
        return {
            "rows": packing.batch_rows,
            "row_length": packing.row_length,
            "ms": 1e3 * taken,
            "tflops": flops / taken / 1e12,
            "peak_gb": memory.get("peak_bytes_in_use", 0) / 1e9,
            "first_loss": loss,
            "start_seconds": compiled,
        }

    return part


def parts_of(size: str) -> dict[str, Part]:
    """All parts, the most important first."""
    found: dict[str, Part] = {"peak": peak, "evaluation": evaluation}
    found |= {f"decoding-{n}": decoding(n) for n in CONVERSATIONS[size]}
    found |= {"generate": generate, "determinism": determinism}
    found |= {"dispatch": dispatch, "eager": eager}
    found |= {f"step-{name}": step(name) for name in SHAPES[size]}
    found |= {f"rows-{rows}": step("gpt2-small", rows) for rows in ROWS[size][1]}
    return found


class Absent(Exception):
    """Something that a part needs is not on this machine."""


def _torch():
    try:
        import torch
    except ImportError:
        raise Absent("torch is not installed") from None
    if not torch.cuda.is_available():
        raise Absent("torch sees no accelerator")
    return torch


def _model(size: str, name: str):
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


def _policy(model, decoding: str, batch: int, new: int, prompt: int):
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
        max_utterance=min(new, model.decoder.max_positions // 2),
        batch_size=batch,
        steer=steer_logits,
    )
    rng = np.random.default_rng(0)
    length = min(prompt, model.decoder.max_positions // 4)
    return policy, [rng.integers(1, vocab, length).astype(np.int32) for _ in range(batch)]


def _batch(model, rows: int):
    """Packing, and a batch of rows as long as the network's context, full of dialogues."""
    from experiments.benchmarks.train_step import Size, make_dialogues
    from ilql_jax.batching import make_batches, packing_for

    length = model.decoder.max_positions
    size = Size(model.decoder, 8 * rows, length // 4, length // 2)
    dialogues = make_dialogues(size)
    packing = packing_for(dialogues, batch_rows=rows, row_length=length)
    return packing, next(make_batches(dialogues, packing, 0))


def _step(model, packing, batch):
    from experiments.benchmarks.train_step import METHOD, TRAIN
    from ilql_jax.train_step import init_state, make_train_step

    method = METHOD.configured(action_chunk=1024)
    state = init_state(model, method, TRAIN, 0)
    return make_train_step(model, method, TRAIN), state, batch


def _seconds_a_call(function: Callable[[], Any], calls: int) -> float:
    """Mean over calls that follow each other without waiting, after one to warm up."""
    import jax

    jax.block_until_ready(function())
    start = time.perf_counter()
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


# --- running them -------------------------------------------------------------------------------


def run(size: str, names: Sequence[str], limit: float, path: Path | None) -> list[dict[str, Any]]:
    """Runs parts one after the other, each in a process; returns and writes what they found."""
    results: list[dict[str, Any]] = []
    best = None
    for name in names:
        result = {"part": name, **run_part(size, name, limit)}
        if name == "peak":
            best = result.get("tflops")
        if best and "tflops" in result and name != "peak":
            result["mfu"] = result["tflops"] / best
        results.append(result)
        print("  ".join(f"{key} {_shown(value)}" for key, value in result.items()), flush=True)
        if path:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
    return results


def run_part(size: str, name: str, limit: float) -> dict[str, Any]:
    """Findings of a part, in a process that is killed after its limit; or why there is nothing."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_in_process, args=(size, name, answers), daemon=True)
    start = time.perf_counter()
    process.start()
    found: dict[str, Any] | None = None
    while found is None and time.perf_counter() - start < limit:
        try:
            found = answers.get(timeout=0.5)
        except queue.Empty:
            if not process.is_alive():
                # It may have answered in the last moment.
                found = _last(answers) or {"failed": f"ended with exit code {process.exitcode}"}
    process.kill()
    process.join()
    if found is None:
        found = {"failed": f"took longer than {limit:g} s"}
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def _last(answers) -> dict[str, Any] | None:
    try:
        return answers.get(timeout=1.0)
    except queue.Empty:
        return None


def _in_process(size: str, name: str, answers) -> None:
    try:
        answers.put(dict(parts_of(size)[name](size)))
    except Absent as absent:
        answers.put({"skipped": str(absent)})
    except BaseException as error:
        line = str(error).strip().partition("\n")[0][:300]
        answers.put({"failed": f"{type(error).__name__}: {line}", "at": _where(error)})


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f"{Path(f.filename).name}:{f.lineno}" for f in frames if "site-packages" not in f.filename
    ]
    return ours[-1] if ours else ""


def machine(size: str) -> dict[str, Any]:
    """The device and versions, asked of a process of its own: this one must not hold the device."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_device, args=(size, answers), daemon=True)
    process.start()
    process.join(60)
    process.kill()
    return {"part": "machine", **(_last(answers) or {"failed": "the device did not answer"})}


def _device(size: str, answers) -> None:
    import jax

    device = jax.local_devices()[0]
    answers.put(
        {
            "device": device.device_kind,
            "platform": device.platform,
            "count": jax.local_device_count(),
            "size": size,
            **measuring.circumstances(),
        }
    )


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=tuple(SHAPES), default="full")
    parser.add_argument("--parts", default="", help="names with commas between; all by default")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of a part")
    parser.add_argument("--json", default="", help="file for the figures, a JSON object a line")
    line = parser.parse_args()
    known = parts_of(line.size)
    names = [name for name in line.parts.split(",") if name] or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(known)}.")
    path = Path(line.json) if line.json else None
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
    about = machine(line.size)
    print("  ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    if path:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(about) + "\n")
    results = run(line.size, names, line.limit, path)
    if failed := [each["part"] for each in results if "failed" in each]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
