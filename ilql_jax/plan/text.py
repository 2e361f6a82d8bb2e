"""Formats a plan as text."""

from __future__ import annotations

import math
from typing import Any

import jax

from ilql_jax.plan.compile import Plan
from ilql_jax.train_step import (
    abstract_frozen,
    abstract_state,
)


def describe(plan: Plan, topology: str) -> str:
    """Formats a plan for the terminal."""
    return "\n".join(
        (
            *_describe_training(plan, topology),
            *_describe_memory(plan),
            *_describe_work(plan),
            *_describe_batch(plan),
        )
    )


def _describe_training(plan: Plan, topology: str) -> list[str]:
    device, packing = plan.mesh.devices.flat[0], plan.training.packing
    axes = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items())
    training = plan.training
    learned = _count(abstract_state(training.model, training.method, training.train).params)
    frozen = _count(abstract_frozen(training.model, training.train))
    parameters = f"{learned + frozen:,} parameters"
    if frozen:
        parameters += f", {learned:,} of them learned"
    return [
        f"{topology}: {plan.mesh.size} x {device.device_kind}; mesh: {axes}",
        f"{training.method.name}, {parameters}; {packing.batch_rows} rows of "
        f"{packing.row_length} tokens, {packing.actions_per_row} of them the agent's",
        "",
    ]


def _count(shapes: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _describe_memory(plan: Plan) -> list[str]:
    memory, activations = plan.step.memory, plan.activations
    temporaries = [("temporaries", memory.temporary, "activations, gradients, ...")]
    if activations is not None:
        rest = memory.temporary - activations
        temporaries = [
            ("activations", activations, "what grows with the rows"),
            ("temporaries", rest, "gradients, parameters put together, ..."),
        ]
    lines = [
        *([("frozen", memory.frozen, "parameters that are not learned")] if memory.frozen else []),
        ("parameters", memory.parameters, "with the target heads"),
        ("optimizer", memory.optimizer, ""),
        ("batch", memory.batch, ""),
        *temporaries,
        ("program", memory.program, ""),
        ("in all", memory.total, ""),
    ]
    limit = plan.memory_limit
    of = "of a limit that is not known" if limit is None else f"of {size_text(limit)}"
    return [
        f"{'fits' if plan.step.fits else 'DOES NOT FIT'}: {size_text(memory.total)} a chip {of}",
        *(f"  {name:<16}{size_text(size):>12}  {note}".rstrip() for name, size, note in lines),
        "",
    ]


def _describe_work(plan: Plan) -> list[str]:
    lines = [f"a step, per chip:\n  matrix products {plan.flops / 1e12:>9.4g} TFLOP"]
    if plan.interconnect is None:
        return [*lines, "  (what is moved and the time are not known, since it does not fit)", ""]
    lines.append(f"  memory          {size_text(plan.memory_traffic):>12}")
    lines += [
        f"  {kind:<16}{size_text(size):>12}  sent"
        for kind, size in sorted(plan.interconnect.items())
    ]
    if plan.seconds is None:
        kind = plan.mesh.devices.flat[0].device_kind
        return [*lines, f"  (no peak figures of {kind!r}, so no estimate of the time)", ""]
    at_peak = ", ".join(f"{name} {1e3 * time:.3g}" for name, time in plan.seconds.items())
    least, most = max(plan.seconds.values()), sum(plan.seconds.values())
    chip = plan.chip
    return [
        *lines,
        f"at peak figures, in milliseconds: {at_peak}; so a step takes no less than "
        f"{1e3 * least:.3g}, or {1e3 * most:.3g} if nothing overlaps",
        f"  ({chip.flops / 1e12:.0f} TFLOP/s bfloat16, {chip.memory_bandwidth / 1e9:.0f} GB/s "
        f"memory, {chip.interconnect / 1e9:.0f} GB/s interconnect: {chip.source})",
        "",
    ]


def _describe_batch(plan: Plan) -> list[str]:
    if plan.most_rows is None:
        return ["largest batch: not known without a limit of memory"]
    tried = (plan.step, *plan.others)
    fitting = max((each.rows for each in tried if each.fits), default=0)
    if plan.most_rows == fitting == 0:
        return ["largest batch: not even the fewest rows fit"]
    if plan.most_rows == fitting:
        failing = min(each.rows for each in tried if not each.fits)
        return [f"largest batch: {fitting} rows, compiled; {failing} do not fit"]
    compiled = f"{fitting} rows compiled and fit" if fitting else "none that was compiled fits"
    return [f"largest batch: {compiled}; extrapolated, {plan.most_rows} or more would"]


def size_text(count: float) -> str:
    """Formats a number of bytes, e.g. "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
