"""Compiles a train step ahead of time, and measures it: memory, work, traffic, largest batch.

`hlo.py` reads the compiled program; `text.py` prints the plan.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ilql_jax import sharding
from ilql_jax.batching import Batch, PackingConfig, abstract_batch
from ilql_jax.methods import Method
from ilql_jax.models import ModelConfig, Params
from ilql_jax.plan import hlo
from ilql_jax.plan.chips import CHIPS, Chip, memory_limit, out_of_memory
from ilql_jax.preferences import PreferenceBatch
from ilql_jax.train_step import (
    TrainConfig,
    TrainState,
    abstract_frozen,
    abstract_state,
    make_train_step,
)


@dataclasses.dataclass(frozen=True)
class PlannedTraining:
    """A training to plan for: all arguments of `train.train` but the data."""

    model: ModelConfig
    method: Method
    train: TrainConfig
    packing: PackingConfig


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip at the step's peak.

    Attributes:
        parameters: Trained parameters, and those of the target network.
        optimizer: The optimizer's state.
        batch: The input.
        program: The machine code.
        temporary: Activations, gradients and all else.
        frozen: Frozen parameters.
    """

    parameters: int
    optimizer: int
    batch: int
    program: int
    temporary: int
    frozen: int = 0

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step, compiled for batches of a number of rows.

    Attributes:
        rows: Rows of a batch.
        memory: Memory that it needs on each chip.
        fits: True if the chip has as much.
        program: None if it did not fit, and was not compiled to the end.
        seconds: Time that compiling took.
    """

    rows: int
    memory: Memory
    fits: bool
    program: hlo.Program | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """Requirements of a training; sizes in bytes, per chip and step.

    Attributes:
        training: The training.
        mesh: Mesh of the devices.
        memory_limit: Bytes that a chip has for programs; None = not known.
        step: The step, compiled.
        others: The step with other numbers of rows, in the order they were tried.
        flops: Floating-point operations of matrix products.
        memory_traffic: Bytes to and from main memory; None if the step was not compiled to the end.
        interconnect: Bytes sent by each chip, by kind of collective; None likewise.
        most_rows: Rows that would fit, extrapolated from the sizes tried; None = no limit.
    """

    training: PlannedTraining
    mesh: Mesh
    memory_limit: int | None
    step: Compiled
    others: tuple[Compiled, ...]
    flops: float
    memory_traffic: int | None
    interconnect: dict[str, int] | None
    most_rows: int | None

    @property
    def chip(self) -> Chip | None:
        """Peak figures of the chip, None if not known."""
        return CHIPS.get(self.mesh.devices.flat[0].device_kind)

    @property
    def activations(self) -> int | None:
        """Bytes of temporary memory that grow with the rows, at the rows planned.

        None where the compiler needs no more for more rows.
        """
        fewer, more = sorted((self.step, self.others[0]), key=lambda compiled: compiled.rows)
        slope = (more.memory.temporary - fewer.memory.temporary) / (more.rows - fewer.rows)
        if slope <= 0:
            return None
        return min(int(slope * self.step.rows), self.step.memory.temporary)

    @property
    def seconds(self) -> dict[str, float] | None:
        """Seconds for each kind of work alone, at the chip's peak figures; None if not known."""
        if self.chip is None or self.interconnect is None:
            return None
        return {
            "matrix products": self.flops / self.chip.flops,
            "memory": self.memory_traffic / self.chip.memory_bandwidth,
            "interconnect": sum(self.interconnect.values()) / self.chip.interconnect,
        }


def make_plan(
    training: PlannedTraining,
    mesh: Mesh,
    compilations: int = 2,
    on_compiled: Callable[[Compiled], None] = lambda compiled: None,
) -> Plan:
    """Compiles the step for the rows asked for, then for others towards the most that fit.

    Args:
        training: The training.
        mesh: Mesh of the devices.
        compilations: Most compilations, at least two: the second shows what grows with the rows.
        on_compiled: Called after each.

    Raises:
        MeshError: The mesh does not divide the rows or a parameter.
    """
    accumulation = training.train.gradient_accumulation
    sharding.check_rows(training.packing.batch_rows, mesh, accumulation)
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * accumulation
    limit = memory_limit(mesh.devices.flat[0])
    rows = training.packing.batch_rows
    tried: list[Compiled] = []

    def compile_for(rows: int) -> None:
        tried.append(compile_step(training, mesh, rows, limit))
        on_compiled(tried[-1])

    compile_for(rows)
    compile_for(rows // parts // 2 * parts or 2 * rows)
    most = None
    if limit is not None:
        most = guess_most_rows(tried, parts, limit)
        while len(tried) < compilations and most not in [0, *(each.rows for each in tried)]:
            compile_for(most)
            most = guess_most_rows(tried, parts, limit)
    program = tried[0].program
    return Plan(
        training=training,
        mesh=mesh,
        memory_limit=limit,
        step=tried[0],
        others=tuple(tried[1:]),
        flops=step_flops(training, mesh) / mesh.size,
        memory_traffic=program and hlo.memory_traffic(program),
        interconnect=program and hlo.interconnect_traffic(program),
        most_rows=most,
    )


_FARTHEST = 8  # extrapolate at most 8x: small programs predict large ones badly


def guess_most_rows(tried: Sequence[Compiled], parts: int, limit: int) -> int:
    """Guesses the most rows that fit: where a line through two sizes meets the limit.

    Args:
        tried: At least two, of different rows.
        parts: Number that the rows have to be a multiple of.
        limit: Bytes that a chip has.

    Returns:
        The rows; the most that fitted, if there is no multiple between them and what did not.
    """
    tried = sorted(tried, key=lambda compiled: compiled.rows)
    fitting = [each for each in tried if each.fits]
    failing = [each for each in tried if not each.fits]
    few, many = (fitting[-1:] + failing[:2])[:2] if failing else fitting[-2:]
    slope = max(1.0, (many.memory.total - few.memory.total) / (many.rows - few.rows))
    guess = few.rows + (limit - few.memory.total) / slope
    if fitting:
        guess = min(max(guess, fitting[-1].rows), _FARTHEST * fitting[-1].rows)
    if failing:
        guess = min(guess, failing[0].rows - parts)
    return max(0, int(guess) // parts * parts)


def compile_step(training: PlannedTraining, mesh: Mesh, rows: int, limit: int | None) -> Compiled:
    """Compiles the train step for a mesh and a number of rows."""
    start = time.monotonic()
    packing = dataclasses.replace(training.packing, batch_rows=rows)
    state, batch, *frozen = arguments = _arguments(training, packing, mesh)
    fixed = {
        "parameters": sharding.bytes_per_device((state.params, state.targets)),
        "optimizer": sharding.bytes_per_device(state.optimizer),
        "batch": sharding.bytes_per_device(batch),
        "frozen": sharding.bytes_per_device(frozen),
    }
    step = make_train_step(training.model, training.method, training.train, mesh)
    lowered = step.lower(*arguments)
    try:
        compiled, program = _compile(lowered, is_for_tpu=mesh.devices.flat[0].platform == "tpu")
    except jax.errors.JaxRuntimeError as error:
        needed_and_limit = out_of_memory(str(error))
        if needed_and_limit is None:
            raise
        temporary = max(0, needed_and_limit[0] - sum(fixed.values()))
        memory = Memory(**fixed, program=0, temporary=temporary)
        return Compiled(rows, memory, False, None, time.monotonic() - start)
    sizes = compiled.memory_analysis()
    # The new state is written over the old one; outputs that are not count as temporary.
    beside = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    memory = Memory(
        **fixed,
        program=sizes.generated_code_size_in_bytes,
        temporary=sizes.temp_size_in_bytes + max(0, beside),
    )
    fits = limit is None or memory.total <= limit
    return Compiled(rows, memory, fits, program, time.monotonic() - start)


def _compile(
    lowered: jax.stages.Lowered, is_for_tpu: bool
) -> tuple[jax.stages.Compiled, hlo.Program]:
    """Compiles the step; returns it and its program, as the compiler itself dumps it.

    libtpu may be newer than JAX's reader of its programs, so for TPUs the dump is read instead.
    """
    if not is_for_tpu:
        compiled = lowered.compile()
        return compiled, hlo.parse(compiled.as_text())
    with tempfile.TemporaryDirectory() as folder:
        dump = {
            "xla_dump_to": folder,
            "xla_dump_hlo_as_text": True,
            "xla_dump_hlo_module_re": "jit_step.*",
        }
        compiled = lowered.compile(compiler_options=dump)
        files = list(Path(folder).glob("*jit_step*.after_optimizations.txt"))
        return compiled, hlo.parse(files[0].read_text() if files else compiled.as_text())


def step_flops(training: PlannedTraining, mesh: Mesh) -> float:
    """Counts floating-point operations of a step's matrix products, on all chips together.

    Operations that are computed again in the backward pass (remat) count again.
    """
    step = make_train_step(training.model, training.method, training.train, mesh)
    arguments = _arguments(training, training.packing, mesh)
    return matrix_flops(jax.make_jaxpr(step)(*arguments).jaxpr)


def matrix_flops(jaxpr: Any) -> float:
    """Counts 2 m n k for each product of [m, k] and [k, n]; loops as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
            continue
        inner = [
            matrix_flops(getattr(each, "jaxpr", each))
            for each in jax.tree.leaves(equation.params, is_leaf=_is_program)
            if _is_program(each)
        ]
        if equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += equation.params.get("length", 1) * sum(inner)
    return total


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _arguments(
    training: PlannedTraining, packing: PackingConfig, mesh: Mesh
) -> tuple[TrainState | Batch | PreferenceBatch | Params, ...]:
    """Returns the step's arguments as shapes with shardings: state, batch, frozen parameters."""
    state = sharding.with_shardings(
        abstract_state(training.model, training.method, training.train), mesh
    )
    batch = abstract_batch(packing, sharding.batch_sharding(mesh))
    if training.method.learns_from == "pairs":
        batch = PreferenceBatch(batch, batch.by_utterance.reward)
    frozen = abstract_frozen(training.model, training.train)
    return (
        (state, batch) if frozen is None else (state, batch, sharding.with_shardings(frozen, mesh))
    )
