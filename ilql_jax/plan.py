"""What a training would take on a machine that need not be there.

    python -m ilql_jax.plan --config=experiments/teaching.py --topology=v5e:4x4
    python -m ilql_jax.plan --config=experiments/teaching.py --topology=local

Compiles the real train step ahead of time, for a TPU slice with libtpu's compiler (no TPU needed)
or for the devices of this machine, and prints whether it fits, what fills the memory of a chip,
the work and the communication of a step, how long it would take at the chip's peak figures, and
the largest batch that fits. The config is a file with `get_config()`; its settings are read by the
names of the dataclasses' fields (`ModelConfig`, `TrainConfig`, ...), and each can be set:

    ... --config.model.hidden_size=4096 --config.train.batch_rows=256 --config.mesh.fsdp=256

The largest batch is extrapolated from two compilations; with `--compilations=6` it is looked for
with up to four more. How full rows are is the data's matter, which is not read: `--agent_share` and
`--utterance_tokens` say it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from ilql_jax import hlo, sharding
from ilql_jax.batching import Batch, PackingConfig, abstract_batch
from ilql_jax.errors import UserError
from ilql_jax.models import ModelConfig, Params
from ilql_jax.models.network_config import network_config
from ilql_jax.objectives import LEARNS_FROM_PAIRS, ObjectiveConfig, network_of
from ilql_jax.partition import check_start
from ilql_jax.preferences import PreferenceBatch
from ilql_jax.sharding import MeshConfig
from ilql_jax.train import (
    TrainConfig,
    TrainState,
    abstract_frozen,
    abstract_state,
    make_train_step,
)


class PlanError(UserError, ValueError):
    """Something that cannot be planned. The message says what can."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Public peak figures of one chip.

    Attributes:
        flops: Per second, of dense bfloat16 matrix products. JAX's default precision on a TPU
            multiplies float32 matrices so too.
        memory_bandwidth: Bytes per second.
        interconnect: Bytes per second that it can send to other chips over all links: half of what
            is published as bidirectional.
        source: Where the figures stand.
    """

    flops: float
    memory_bandwidth: float
    interconnect: float
    source: str


_TPU_DOCS = "https://cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"
# By JAX's name of the device.
CHIPS = {
    "TPU v5 lite": Chip(197e12, 819e9, 200e9, f"{_TPU_DOCS}/v5e"),
    "TPU v5": Chip(459e12, 2765e9, 600e9, f"{_TPU_DOCS}/v5p"),
    "TPU v6 lite": Chip(918e12, 1600e9, 400e9, f"{_TPU_DOCS}/v6e"),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2039e9, 300e9, f"{_NVIDIA}/a100"),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 3350e9, 450e9, f"{_NVIDIA}/h100"),
    "NVIDIA H200": Chip(989e12, 4800e9, 450e9, f"{_NVIDIA}/h200"),
}
# Slices that Google offers.
TOPOLOGIES = {
    "v5e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": (
        *("2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
        *("16x16x16", "16x16x24"),
    ),
    "v6e": ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is planned: everything that `train.train` is given, but the data."""

    model: ModelConfig
    objective: ObjectiveConfig
    train: TrainConfig
    packing: PackingConfig


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip at the step's peak.

    Attributes:
        parameters: Those that are learned, and the target heads'.
        optimizer: Its state.
        batch: The input.
        program: The code.
        temporary: All else; above what the chip has left, the step does not fit.
        frozen: Parameters that are not learned.
    """

    parameters: int
    optimizer: int
    batch: int
    program: int
    temporary: int
    frozen: int = 0

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step that was compiled for batches of so many rows.

    Attributes:
        rows: In a batch.
        memory: What it takes on each chip.
        fits: Whether the chip has as much.
        program: None if the compiler gave up.
        seconds: That compiling took.
    """

    rows: int
    memory: Memory
    fits: bool
    program: hlo.Program | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training would take; sizes in bytes, per chip and step.

    Attributes:
        setting: What was planned.
        mesh: On which devices.
        memory_limit: Bytes that a chip has for programs; None = not known.
        step: The step, compiled.
        others: The same with other numbers of rows, in the order they were tried.
        flops: Of matrix products.
        memory_traffic: To and from main memory; None where there is no program to count it in.
        interconnect: Sent by each chip, by collective; likewise.
        most_rows: By the line through the sizes tried, how many rows would fit; None = no limit.
    """

    setting: Setting
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
        return CHIPS.get(self.mesh.devices.flat[0].device_kind)

    @property
    def activations(self) -> int | None:
        """What of the temporary memory grows with the rows, at the rows planned.

        None where the compiler found a way to need no more for more rows.
        """
        fewer, more = sorted((self.step, self.others[0]), key=lambda compiled: compiled.rows)
        grows = (more.memory.temporary - fewer.memory.temporary) / (more.rows - fewer.rows)
        if grows <= 0:
            return None
        return min(int(grows * self.step.rows), self.step.memory.temporary)

    @property
    def seconds(self) -> dict[str, float] | None:
        """Time for each kind of work alone, at the chip's peak figures; None if not known."""
        if self.chip is None or self.interconnect is None:
            return None
        return {
            "matrix products": self.flops / self.chip.flops,
            "memory": self.memory_traffic / self.chip.memory_bandwidth,
            "interconnect": sum(self.interconnect.values()) / self.chip.interconnect,
        }


def devices_of(topology: str) -> Sequence[jax.Device]:
    """The devices of a TPU slice by its name, e.g. "v5e:4x4", or of this machine: "local".

    Raises:
        PlanError: There is no such slice, or libtpu is not installed.
    """
    if topology == "local":
        return jax.local_devices()
    known = "; ".join(f"{kind}:{', '.join(sizes)}" for kind, sizes in TOPOLOGIES.items())
    name = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", topology)
    if not name or name[1] not in TOPOLOGIES:
        raise PlanError(f"there is no topology {topology!r}; there are local, {known}.")
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(
            f"planning for {topology} needs the TPU compiler: pip install 'ilql-jax[tpu]'."
        )
    # Only the compiler is used: no machine is looked for, and another process may use it too.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        ("TPU_ACCELERATOR_TYPE", f"{name[1]}-1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
    ):
        os.environ.setdefault(variable, value)
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except (RuntimeError, ValueError) as error:
        raise PlanError(
            f"there is no topology {topology!r} ({error}); there are local, {known}."
        ) from None


def make_plan(
    setting: Setting,
    mesh: Mesh,
    compilations: int = 2,
    on_compiled: Callable[[Compiled], None] = lambda compiled: None,
) -> Plan:
    """Compiles the step for the rows asked for, then for others towards the most that fit.

    Args:
        setting: What is planned.
        mesh: On which devices.
        compilations: At most so many, two at least: the second shows what grows with the rows.
        on_compiled: Called after each.

    Raises:
        MeshError: The mesh does not divide the rows or a parameter.
    """
    accumulation = setting.train.gradient_accumulation
    sharding.check_rows(setting.packing.batch_rows, mesh, accumulation)
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * accumulation
    limit = memory_limit(mesh.devices.flat[0])
    rows = setting.packing.batch_rows
    tried: list[Compiled] = []

    def compile_for(rows: int) -> None:
        tried.append(compile_step(setting, mesh, rows, limit))
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
        setting=setting,
        mesh=mesh,
        memory_limit=limit,
        step=tried[0],
        others=tuple(tried[1:]),
        flops=step_flops(setting, mesh) / mesh.size,
        memory_traffic=program and hlo.memory_traffic(program),
        interconnect=program and hlo.interconnect_traffic(program),
        most_rows=most,
    )


_FARTHEST = 8  # times the rows that fit are guessed at once: small programs do not tell of large


def guess_most_rows(tried: Sequence[Compiled], parts: int, limit: int) -> int:
    """The most rows that may fit: where a line through two sizes meets the limit.

    Args:
        tried: At least two, of different rows.
        parts: What the rows have to be a multiple of.
        limit: Bytes that a chip has.

    Returns:
        Rows; those that fitted, if between them and what did not there is no further multiple.
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


def memory_limit(device: jax.Device) -> int | None:
    """Bytes that programs may use on a device; None if that is not known (a CPU)."""
    if device.platform != "tpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    # The compiler tells by refusing what fits on no chip.
    too_large = jax.ShapeDtypeStruct(
        (2**40,), jnp.int8, sharding=jax.sharding.SingleDeviceSharding(device)
    )
    try:
        jax.jit(jnp.negative).lower(too_large).compile()
    except jax.errors.JaxRuntimeError as error:
        if found := _out_of_memory(str(error)):
            return found[1]
        raise
    return None


def compile_step(setting: Setting, mesh: Mesh, rows: int, limit: int | None) -> Compiled:
    """The train step for batches of so many rows, compiled for the mesh."""
    start = time.monotonic()
    packing = dataclasses.replace(setting.packing, batch_rows=rows)
    state, batch, *frozen = arguments = _arguments(setting, packing, mesh)
    fixed = {
        "parameters": sharding.bytes_per_device((state.params, state.target_q)),
        "optimizer": sharding.bytes_per_device(state.optimizer),
        "batch": sharding.bytes_per_device(batch),
        "frozen": sharding.bytes_per_device(frozen),
    }
    step = make_train_step(setting.model, setting.objective, setting.train, mesh)
    lowered = step.lower(*arguments)
    try:
        compiled, program = _compile(lowered, is_for_tpu=mesh.devices.flat[0].platform == "tpu")
    except jax.errors.JaxRuntimeError as error:
        found = _out_of_memory(str(error))
        if found is None:
            raise
        temporary = max(0, found[0] - sum(fixed.values()))
        memory = Memory(**fixed, program=0, temporary=temporary)
        return Compiled(rows, memory, False, None, time.monotonic() - start)
    sizes = compiled.memory_analysis()
    # The new state is written over the old one; what is not, is counted with the rest.
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
    """The compiled step, and its program as the compiler itself writes it down.

    What libtpu compiled is not read from JAX: it may be newer than JAX's reader of programs.
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


def _out_of_memory(error: str) -> tuple[int, int] | None:
    """Bytes needed and there, from the TPU compiler's message that a program does not fit."""
    size = r"([\d.]+)([KMGT])"
    found = re.search(rf"\({size}\) exceeds available HBM \({size}\)", error)
    found = found or re.search(rf"Used {size} of {size} hbm", error)
    if not found:
        return None
    needed, unit, there, of = found.groups()
    powers = {"K": 10, "M": 20, "G": 30, "T": 40}
    return int(float(needed) * 2 ** powers[unit]), int(float(there) * 2 ** powers[of])


def step_flops(setting: Setting, mesh: Mesh) -> float:
    """Floating-point operations of a step's matrix products, on all chips together.

    What is computed again in the backward pass counts again.
    """
    step = make_train_step(setting.model, setting.objective, setting.train, mesh)
    arguments = _arguments(setting, setting.packing, mesh)
    return matrix_flops(jax.make_jaxpr(step)(*arguments).jaxpr)


def matrix_flops(jaxpr: Any) -> float:
    """2 m n k for each product of [m, k] and [k, n] in a program; loops as often as they run."""
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
    setting: Setting, packing: PackingConfig, mesh: Mesh
) -> tuple[TrainState | Batch | PreferenceBatch | Params, ...]:
    """Shapes of what a step is given, with where they lie: state, batch, and what is frozen."""
    state = sharding.with_shardings(abstract_state(setting.model, setting.train), mesh)
    batch = abstract_batch(packing, sharding.batch_sharding(mesh))
    if setting.objective.method in LEARNS_FROM_PAIRS:
        batch = PreferenceBatch(batch, batch.by_utterance.reward)
    frozen = abstract_frozen(setting.model, setting.train)
    return (
        (state, batch) if frozen is None else (state, batch, sharding.with_shardings(frozen, mesh))
    )


def setting_of(
    config: ConfigDict, method: str, agent_share: float, utterance_tokens: int
) -> Setting:
    """What an experiment's config asks for, its settings read by the names of our fields.

    Args:
        config: With sections `model`, `train`, `objective` and `tokenizer.vocab_size`. Of
            `model.pretrained`, where it is given, the `config.json` alone is read.
        method: Which of `objectives.OBJECTIVES`.
        agent_share: Fraction of the tokens that are the agent's.
        utterance_tokens: Length of an agent's utterance.

    Raises:
        PretrainedError: Dialogues longer than what the pretrained network reads.
        ValueError: Adapters without one, or another setting that cannot be.
    """
    pretrained = config.model.get("pretrained")
    # A pretrained network has its own tokens; how many the tokenizer adds is not known here.
    vocab_size = 0 if pretrained else config.tokenizer.vocab_size
    model = network_of(method, network_config(config.model.to_dict(), vocab_size))
    check_start(model, there_is=bool(pretrained))
    length = config.model.max_positions
    actions = max(1, -(-int(length * agent_share) // 8) * 8)
    pairs = -(-actions // (2 * utterance_tokens))
    return Setting(
        model,
        ObjectiveConfig(method=method, **_fields(config.objective, ObjectiveConfig)),
        TrainConfig(**_fields(config.train, TrainConfig)),
        PackingConfig(config.train.batch_rows, length, actions, 2 * pairs),
    )


def _fields(section: ConfigDict, kind: type) -> dict[str, Any]:
    return {f.name: section[f.name] for f in dataclasses.fields(kind) if f.name in section}


def describe(plan: Plan, topology: str) -> str:
    """The plan as text."""
    return "\n".join(
        (
            *_describe_setting(plan, topology),
            *_describe_memory(plan),
            *_describe_work(plan),
            *_describe_batch(plan),
        )
    )


def _describe_setting(plan: Plan, topology: str) -> list[str]:
    device, packing = plan.mesh.devices.flat[0], plan.setting.packing
    axes = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items())
    setting = plan.setting
    learned = _count(abstract_state(setting.model, setting.train).params)
    frozen = _count(abstract_frozen(setting.model, setting.train))
    parameters = f"{learned + frozen:,} parameters"
    if frozen:
        parameters += f", {learned:,} of them learned"
    return [
        f"{topology}: {plan.mesh.size} x {device.device_kind}; mesh: {axes}",
        f"{setting.objective.method}, {parameters}; {packing.batch_rows} rows of "
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
    of = "of a limit that is not known" if limit is None else f"of {_size(limit)}"
    return [
        f"{'fits' if plan.step.fits else 'DOES NOT FIT'}: {_size(memory.total)} a chip {of}",
        *(f"  {name:<16}{_size(size):>12}  {note}".rstrip() for name, size, note in lines),
        "",
    ]


def _describe_work(plan: Plan) -> list[str]:
    lines = [f"a step, per chip:\n  matrix products {plan.flops / 1e12:>9.4g} TFLOP"]
    if plan.interconnect is None:
        return [*lines, "  (what is moved and the time are not known, since it does not fit)", ""]
    lines.append(f"  memory          {_size(plan.memory_traffic):>12}")
    lines += [
        f"  {kind:<16}{_size(size):>12}  sent" for kind, size in sorted(plan.interconnect.items())
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


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def mesh_for(config: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh asked for; where it asks for one device, all along `data`."""
    return sharding.make_mesh(MeshConfig() if config.is_single else config, devices)


def main(arguments: Sequence[str]) -> None:
    """Reads the command line and prints the plan."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(arguments))
    flags.DEFINE_string("topology", "local", "A TPU slice such as v5e:4x4, or local.", values)
    flags.DEFINE_string("method", "ilql", "What is trained: bc, mc, ilql or dpo.", values)
    flags.DEFINE_float("agent_share", 0.45, "Of the tokens, the agent's.", 0, 1, values)
    flags.DEFINE_integer("utterance_tokens", 16, "Length of an utterance.", 1, None, values)
    flags.DEFINE_integer("compilations", 2, "Most that are done.", 2, None, values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    try:
        _, *rest = values(list(arguments))
        config = values.config
        _ = config is None or config.keys()  # a file that could not be read is told only now
    except OSError as error:  # says where it was looked for, and last why it was not there
        raise PlanError(f"--config: {str(error).splitlines()[-1].strip()}.") from None
    except (AttributeError, KeyError) as error:
        name = re.sub(r"\W", "", str(error))
        raise PlanError(f"--config: there is no setting {name!r} in it.") from None
    if values.help:
        print(f"{__doc__}\n{values.get_help()}")
        return
    if rest:
        raise PlanError(f"unexpected argument {rest[0]!r}; see --help.")
    if config is None:
        raise PlanError("--config is missing: a file with get_config(), e.g. one of experiments/.")
    if values.topology != "local":
        jax.config.update("jax_platforms", "cpu")  # no accelerator of this machine is taken
    setting = setting_of(config, values.method, values.agent_share, values.utterance_tokens)
    asked = _fields(config.get("mesh", ConfigDict()), MeshConfig)
    mesh_config = MeshConfig(**{"data": 1, **asked})
    mesh = mesh_for(mesh_config, devices_of(values.topology))
    rows = setting.packing.batch_rows
    accumulation = setting.train.gradient_accumulation
    parts = mesh.size * accumulation
    if mesh_config.is_single and rows % parts:
        packing = dataclasses.replace(setting.packing, batch_rows=-(-rows // parts) * parts)
        setting = dataclasses.replace(setting, packing=packing)
        often = f" {accumulation} times" if accumulation > 1 else ""
        print(
            f"{rows} rows cannot be split over {mesh.size} chips{often}: planned with "
            f"{packing.batch_rows}."
        )

    def tell(compiled: Compiled) -> None:
        print(
            f"compiled for {compiled.rows} rows in {compiled.seconds:.0f} s: "
            f"{_size(compiled.memory.total)} a chip",
            flush=True,
        )

    plan = make_plan(setting, mesh, values.compilations, tell)
    print()
    print(describe(plan, values.topology))


if __name__ == "__main__":
    try:
        main(sys.argv)
    except (ValueError, flags.Error) as error:
        sys.exit(f"Error: {error}")
