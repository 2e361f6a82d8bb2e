"""One accelerator, looked at in ten minutes: does everything run there, and how fast.

    python experiments/benchmarks/gpu.py --json=gpu.json
    python experiments/benchmarks/gpu.py --parts=evaluation,step --limit=90 --total=300

Each part is a process of its own with its own limit, so one that fails, hangs or takes all memory
costs the others nothing; figures go into the file (a JSON object a line) and onto the terminal as
they come, and those that a part found before it failed are kept. No part goes on after `--total`
seconds; those that matter most come first. `--parts=step` is every `step-NAME`:

| part | shows |
| --- | --- |
| `evaluation` | `Policy` with the default network: conversations answered a second |
| `decoding-N` | GPT-2 small with N conversations: plain, steered, best of 16 |
| `generate` | Hugging Face's `generate` on the same shape, where torch sees the accelerator |
| `eager` | PyTorch eager on the batch of `train_step.py`, where torch sees the accelerator |
| `teaching` | training ILQL as `experiments/teaching.py` does: steps a second, here and on CPUs |
| `start` | that training: from the process's start to its first step, cold and with a cache |
| `determinism` | a training twice, and a decoding twice: equal bits |
| `peak` | TFLOP/s of a large bfloat16 product; MFU of the parts after it is a share of it |
| `step-NAME` | the papers' ILQL step on rows of 1,024 tokens: ms, MFU, peak memory |
| `dispatch` | steps a second of the default network, 1, 4 or 16 of them at one call |
| `rows-N` | the step of GPT-2 small with more rows, until they do not fit |

A step's FLOPs are those of the matrix products in the traced program. On a machine without an
accelerator `--size=tiny` rehearses it, torch included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import measuring, parts
from experiments.benchmarks.parts import Absent, Found, Part

ROOT = Path(__file__).parents[2]
LIMIT, TOTAL = 90.0, 600.0  # seconds of a part, compilation included, and of all
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
        "llama-1b": ((97, 32, 2, 2, 64, 64), _LLAMA | {"num_kv_heads": 1, "scan_layers": True}),
    },
}
CONVERSATIONS = {"full": (8, 64, 256), "tiny": (2,)}
ROWS = {"full": (8, (16, 32, 64, 128)), "tiny": (2, (4,))}
PROMPT_AND_NEW = {"full": (64, 32), "tiny": (16, 8)}  # tokens
# Conversations of the default network: vocabulary, positions, how many, prompts and new tokens.
DEFAULT = {"full": (600, 240, 64, 120, 24), "tiny": (97, 32, 2, 8, 4)}
AT_ONCE = (1, 4, 16)  # steps
# The run `teaching`, with as many dialogues as are imagined in a few seconds; steps are the same.
TEACHING = {
    "full": ("--config.imagination.dialogues=3000", "--config.train.steps=300"),
    "tiny": (
        "--config.imagination.dialogues=100",
        "--config.train.steps=10",
        "--config.model.hidden_size=16",
        "--config.model.num_layers=1",
    ),
}


# --- parts --------------------------------------------------------------------------------------


def peak(size: str) -> Found:
    """TFLOP/s of a product of two square bfloat16 matrices."""
    import jax
    import jax.numpy as jnp

    width = 8192 if size == "full" else 128
    a = jnp.ones((width, width), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    taken = _seconds_a_call(lambda: product(a), 20)
    yield {"width": width, "tflops": 2 * width**3 / taken / 1e12}


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
        model = _model(size, "gpt2-small")
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


def generate(size: str) -> Found:
    """Tokens a second of Hugging Face's `generate`, sampled, for each number of conversations."""
    torch, device = _torch(size)
    from transformers import GPT2Config, GPT2LMHeadModel

    vocab, width, layers, heads, _, positions = SHAPES[size]["gpt2-small"][0]
    shape = GPT2Config(
        vocab_size=vocab, n_embd=width, n_layer=layers, n_head=heads, n_positions=positions
    )
    model = GPT2LMHeadModel(shape).eval().to(device, torch.bfloat16)
    prompt, new = PROMPT_AND_NEW[size]
    for conversations in CONVERSATIONS[size]:
        prompts = torch.randint(1, vocab, (conversations, prompt), device=device)

        @torch.no_grad()
        def write(prompts=prompts) -> None:
            model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=0,
            )
            _finish(torch)

        write()
        taken = measuring.seconds(write)
        yield {f"{conversations}_tokens_per_second": conversations * new / taken}


def determinism(size: str) -> Found:
    """Equal bits: three steps from the same seed, and answers with the same seeds, twice each."""
    import jax

    model = _model(size, "gpt2-small")

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


def eager(size: str) -> Found:
    """PyTorch eager on the 8 dialogues of `train_step.py`, float32, and ours on the same."""
    torch, device = _torch(size)
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
    trainer.model.to(device)
    trainer.batch = {name: tensor.to(device) for name, tensor in trainer.batch.items()}
    ours = train_step.make_ours(name, "mlp", rows=4, chunk=1024)

    def theirs() -> None:
        trainer.step()
        _finish(torch)

    for step in (theirs, ours):
        for _ in range(3):
            step()
    taken = measuring.in_turn(
        {"eager": lambda: measuring.seconds(theirs), "ours": lambda: measuring.seconds(ours)}, 10
    )
    yield {
        "eager_ms": 1e3 * taken["eager"],
        "ours_ms": 1e3 * taken["ours"],
        "times_faster": taken["eager"] / taken["ours"],
    }


def step(name: str, rows: int | None = None) -> Part:
    """Part that times the papers' step with a network of a shape."""

    def part(size: str) -> Found:
        import jax

        from ilql_jax.plan.compile import matrix_flops

        model = _model(size, name)
        packing, batch = _batch(model, rows or ROWS[size][0])
        start = time.perf_counter()
        function, state = _step(model)
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


def teaching(size: str) -> Found:
    """Steps a second of one training of ILQL on teaching, and on the CPU (one thread) beside it."""
    with _imagined(size) as imagined:
        for name, environment in (("", {}), ("cpu_", {"JAX_PLATFORMS": "cpu"})):
            first, steps = _train(imagined, environment)
            yield {f"{name}first_step_seconds": first, f"{name}steps_per_second": steps}


def start(size: str) -> Found:
    """Seconds from a process's start to the first finished step of a training on teaching."""
    with _imagined(size) as imagined, tempfile.TemporaryDirectory() as cache:
        environment = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for name in ("cold", "cached"):
            yield {f"{name}_seconds": _train(imagined, environment)[0]}


@contextlib.contextmanager
def _imagined(size: str) -> Iterator[Path]:
    """A folder of the run `teaching` whose dialogues are imagined."""
    with tempfile.TemporaryDirectory() as folder:
        imagined = Path(folder) / "imagined"
        methods = ("--config.methods=ilql", *TEACHING[size])
        _launch(imagined, "--stage=imagine", *methods, environment={"JAX_PLATFORMS": "cpu"})
        yield imagined


def _train(imagined: Path, environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds to the first step of a training, and steps a second after it."""
    workdir = imagined.with_name("trained")
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(imagined, workdir)
    log = workdir / "metrics" / "ilql-seed0.jsonl"
    every = "--config.train.log_every=1000000"  # but the first step and the last
    seen: list[float] = []
    begun = time.perf_counter()

    def watch() -> None:
        lines = log.read_text("utf-8").count("\n") if log.exists() else 0
        seen.extend([time.perf_counter() - begun] * (lines - len(seen)))

    _launch(workdir, "--stage=train", every, environment=environment, meanwhile=watch)
    steps = [json.loads(line)["step"] for line in log.read_text("utf-8").splitlines()]
    last = steps.index(max(steps))  # what else is told of that step comes later
    return seen[0], (steps[last] - steps[0]) / (seen[last] - seen[0])


def _launch(
    workdir: Path,
    *flags: str,
    environment: Mapping[str, str],
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Runs the experiment `teaching`, which has to succeed."""
    said = workdir.with_suffix(".txt")
    command = [sys.executable, "experiments/teaching.py", f"--workdir={workdir}", *flags]
    with said.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdout=output, stderr=output
        )
        while process.poll() is None:
            meanwhile()
            time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"teaching: {said.read_text('utf-8').strip()[-280:]}")


def parts_of(size: str) -> dict[str, Part]:
    """All parts, the most important first."""
    found: dict[str, Part] = {"evaluation": evaluation}
    found |= {f"decoding-{n}": decoding(n) for n in CONVERSATIONS[size]}
    found |= {"generate": generate, "eager": eager, "teaching": teaching, "start": start}
    found |= {"determinism": determinism, "peak": peak}
    found |= {f"step-{name}": step(name) for name in SHAPES[size]}
    found |= {"dispatch": dispatch}
    found |= {f"rows-{rows}": step("gpt2-small", rows) for rows in ROWS[size][1]}
    return found


def _torch(size: str) -> tuple[Any, str]:
    """PyTorch and its device: the accelerator; to rehearse, the CPU.

    Raises:
        Absent: There is none.
    """
    try:
        import torch
    except ImportError:
        raise Absent("torch is not installed") from None
    if torch.cuda.is_available():
        return torch, "cuda"
    if size == "full":
        raise Absent("torch sees no accelerator")
    return torch, "cpu"


def _finish(torch: Any) -> None:
    """Waits until the accelerator has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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
    from ilql_jax.train_step import init_state, make_train_step

    method = METHOD.configured(action_chunk=1024)
    state = init_state(model, method, TRAIN, 0)
    return make_train_step(model, method, TRAIN), state


def _seconds_a_call(function: Callable[[], Any], calls: int) -> float:
    """Mean over calls that follow each other without waiting, after one to warm up."""
    import jax

    jax.block_until_ready(function())
    start = time.perf_counter()
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def machine(size: str) -> Found:
    """The device and versions; a part like the others: this process must not hold the device."""
    import jax

    device = jax.local_devices()[0]
    yield {
        "device": device.device_kind,
        "platform": device.platform,
        "count": jax.local_device_count(),
        "size": size,
        **measuring.circumstances(),
    }


def _about(size: str) -> dict[str, Part]:
    return {"machine": machine}


def main() -> None:
    deadline = time.perf_counter()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=tuple(SHAPES), default="full")
    parser.add_argument(
        "--parts",
        default="",
        help="names, or their beginnings, with commas between; all by default",
    )
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of a part")
    parser.add_argument("--total", type=float, default=TOTAL, help="seconds of all parts")
    parser.add_argument("--json", default="", help="file for the figures, a JSON object a line")
    line = parser.parse_args()
    deadline += line.total
    try:
        names = parts.chosen(line.parts, list(parts_of(line.size)))
    except ValueError as error:
        parser.error(str(error))
    path = Path(line.json) if line.json else None
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
    parts.tell({"part": "machine", **parts.run_part(_about, line.size, "machine", 60.0)}, path)
    results = parts.run(parts_of, line.size, names, line.limit, deadline, path)
    if failed := [each["part"] for each in results if "failed" in each]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
