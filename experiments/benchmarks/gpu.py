"""One accelerator, looked at in ten minutes: does everything run there, and how fast.

    python experiments/benchmarks/gpu.py --json=gpu.json
    python experiments/benchmarks/gpu.py --parts=evaluation,step --limit=90 --total=300

Each part is a process of its own with its own limit, so one that fails, hangs or takes all memory
costs the others nothing; figures go into the file (a JSON object a line) and onto the terminal as
they come, and those that a part found before it failed are kept. No part goes on after `--total`
seconds; those that matter most come first, and the last may have to go without a turn. Those that
run an experiment may take twice the limit. `--parts=step` is every `step-NAME`:

| part | shows |
| --- | --- |
| `evaluation` | `Policy` with the default network: conversations answered a second |
| `decoding-N` | GPT-2 small with N conversations: plain, steered, best of 16 |
| `generate` | Hugging Face's `generate` on the same shape, where torch sees the accelerator |
| `eager-DTYPE` | PyTorch eager on the batch of `train_step.py`, where torch sees the accelerator: \
losses, then times of both sides |
| `peak` | TFLOP/s of a large bfloat16 product; MFU of the parts after it is a share of it |
| `step-NAME` | the papers' ILQL step on rows of 1,024 tokens: ms, MFU, peak memory |
| `attention` | attention over packed rows with its gradients: ms and error of each kind |
| `stage-evaluate` | `experiments/teaching.py`: the stage evaluate after a short training |
| `teaching` | training ILQL as that does: steps a second, here and on CPUs |
| `start` | that training: from the process's start to its first step, cold and with a cache |
| `determinism` | a training twice, and a decoding twice: equal bits |
| `dispatch` | steps a second of the default network, 1, 4 or 16 of them at one call |
| `rows-N` | the step of GPT-2 small with more rows, until they do not fit |

A step's FLOPs are those of the matrix products in the traced program, attention's over whole rows
included, and none for what is computed again. On a machine without an accelerator `--size=tiny`
rehearses it, torch included.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from experiments.benchmarks import gpu_networks, gpu_runs, gpu_torch, measuring, parts
from experiments.benchmarks.parts import Found, Part

LIMIT, TOTAL = 90.0, 600.0  # seconds of a part, compilation included, and of all
RUNS: dict[str, Part] = {  # they start processes one after the other
    "stage-evaluate": gpu_runs.evaluate,
    "teaching": gpu_runs.teaching,
    "start": gpu_runs.start,
}


def parts_of(size: str) -> dict[str, Part]:
    """All parts, the most important first."""
    step = gpu_networks.step
    found: dict[str, Part] = {"evaluation": gpu_networks.evaluation}
    found |= {f"decoding-{n}": gpu_networks.decoding(n) for n in gpu_networks.CONVERSATIONS[size]}
    found |= {"generate": gpu_torch.generate}
    found |= {f"eager-{dtype}": gpu_torch.eager(dtype) for dtype in gpu_torch.TOLERANCES}
    found |= {"peak": gpu_networks.peak}
    found |= {f"step-{name}": step(name) for name in gpu_networks.SHAPES[size]}
    found |= {"attention": gpu_networks.attention, **RUNS}
    found |= {"determinism": gpu_networks.determinism, "dispatch": gpu_networks.dispatch}
    found |= {f"rows-{rows}": step("gpt2-small", rows) for rows in gpu_networks.ROWS[size][1]}
    return found


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
    parser.add_argument("--size", choices=tuple(gpu_networks.SHAPES), default="full")
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
    limits = {name: line.limit * (2 if name in RUNS else 1) for name in names}
    results = parts.run(parts_of, line.size, limits, deadline, path)
    if failed := [each["part"] for each in results if "failed" in each]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
