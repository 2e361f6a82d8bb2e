"""What a compiled program moves, read from XLA's text: to memory and over the interconnect.

XLA's own cost analysis counts the body of a loop once, however often it runs, and does not tell
collectives apart; here a loop counts as often as it runs. `plan.py` prints what comes of it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_BITS = {"pred": 8, "token": 0, "s4": 4, "u4": 4, "c64": 64, "c128": 128, "bf16": 16}

# Opcodes that move nothing themselves: names for what is there, or loops that are walked into.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier"),
        *("while", "conditional", "call", "after-all", "domain", "partition-id", "replica-id"),
    )
)
COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
    *("collective-permute", "ragged-all-to-all", "collective-broadcast"),
)


@dataclasses.dataclass(frozen=True)
class Piece:
    """An array of an instruction's type: its bytes, and whether it lies in main memory."""

    size: int
    in_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = type opcode(operands), attributes`."""

    name: str
    pieces: tuple[Piece, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    inside: str  # the parentheses, as they are

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)

    @property
    def memory_size(self) -> int:
        return sum(piece.size for piece in self.pieces if piece.in_memory)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program; the last instruction is its root."""

    name: str
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction:
        return list(self.instructions.values())[-1]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program (`compiled.as_text()`), that of one device.

    Attributes:
        computations: By name.
        entry: Name of the one that is run.
        devices: How many run it together.
    """

    computations: Mapping[str, Computation]
    entry: str
    devices: int


def parse(text: str) -> Program:
    """Reads the text of a compiled module."""
    computations, entry, devices, body = {}, "", 1, {}
    name = None
    for line in text.splitlines():
        if line.startswith("HloModule"):
            devices = int((re.search(r"num_partitions=(\d+)", line) or [0, 1])[1])
        elif header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name, body = header[2], {}
            entry = name if header[1] else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(name, body)
            name = None
        elif name and (instruction := _instruction(line)):
            body[instruction.name] = instruction
    return Program(computations, entry, devices)


def memory_traffic(program: Program) -> int:
    """Bytes that a run of the program reads from and writes to a device's main memory.

    Every operand and result of every kernel counts once; of a slice, what is taken or put; arrays
    that the compiler keeps on the chip do not count.
    """
    kernels = sum(
        times * _traffic(program, computation, instruction)
        for computation, times in _runs(program)
        for instruction in computation.instructions.values()
    )
    return kernels + sum(
        times * (each.memory_size + sum(x.memory_size for x in _operands(computation, each)))
        for times, computation, each in _chains(program).values()
    )


def interconnect_traffic(program: Program) -> dict[str, int]:
    """Bytes that a device sends to others in a run of the program, by kind of collective.

    With n devices in a group, rings send (n − 1)/n of what is gathered, scattered or exchanged, and
    twice that of what is summed on all (Thakur et al., 2005).
    """
    found: dict[str, int] = {}
    alone = (
        (times, inside, each)
        for computation, times in _runs(program)
        for inside, each in _collectives(program, computation)
        if not _chain(each)
    )
    for times, computation, each in (*alone, *_chains(program).values()):
        kind = each.opcode.removesuffix("-start")
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # a TPU's: summed, and of the sum each keeps its part
        size = sum(operand.size for operand in _operands(computation, each))
        sent = _sent(kind, size, group_size(each.attributes, program.devices))
        found[kind] = found.get(kind, 0) + times * sent
    return found


def _collectives(
    program: Program, computation: Computation
) -> Iterator[tuple[Computation, Instruction]]:
    """Each collective, those inside of fusions included, and the computation that it stands in."""
    for instruction in computation.instructions.values():
        if instruction.opcode.removesuffix("-start") in COLLECTIVES:
            yield computation, instruction
        elif instruction.opcode in ("fusion", "async-start"):
            yield from _collectives(program, program.computations[_called(instruction, "calls")])


def _chains(program: Program) -> dict[str, tuple[int, Computation, Instruction]]:
    """How often each chain runs, and one of its parts.

    A TPU carries out one collective in several fusions beside other work. They may stand in loops
    inside of the computation that it begins and ends in, whose runs are the fewest.
    """
    found: dict[str, tuple[int, Computation, Instruction]] = {}
    for computation, times in _runs(program):
        for inside, each in _collectives(program, computation):
            chain = _chain(each)
            if chain and (chain not in found or times < found[chain][0]):
                found[chain] = times, inside, each
    return found


def _chain(instruction: Instruction) -> str | None:
    """What the parts of one collective have in common, None for one that is in one piece."""
    chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
    channel = re.search(r"channel_id=(\d+)", instruction.attributes)
    return f"{chain[1]} {channel and channel[1]}" if chain else None


def _sent(kind: str, size: int, group: int) -> int:
    """Bytes that each of `group` devices sends, whose own operands take `size` bytes."""
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    if kind == "all-gather":
        return size * (group - 1)
    part = size * (group - 1) // group
    return 2 * part if kind == "all-reduce" else part


def group_size(attributes: str, devices: int) -> int:
    """How many devices take part in one group of a collective."""
    if explicit := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(explicit[1].split(","))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(iota[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        # 'axis':(2)4 is a part of an axis: four, two apart.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


def _runs(program: Program) -> Iterator[tuple[Computation, int]]:
    """The computations that are run as such (not as a part of a kernel), and how often."""
    waiting = [(program.entry, 1)]
    while waiting:
        name, times = waiting.pop()
        computation = program.computations[name]
        yield computation, times
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                rounds = trip_count(program, instruction)
                waiting.append((_called(instruction, "body"), times * rounds))
            elif instruction.opcode == "call":
                waiting.append((_called(instruction, "to_apply"), times))
            elif instruction.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
                names = re.findall(r"%?([\w.\-]+)", branches[1]) if branches else []
                names += re.findall(
                    r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes
                )
                waiting += [(each, times) for each in names]


def trip_count(program: Program, loop: Instruction) -> int:
    """How often a loop runs: as XLA says, or else the number that its counter is compared with."""
    if known := re.search(r"known_trip_count[^\d]*(\d+)", loop.attributes):
        return int(known[1])
    condition = program.computations[_called(loop, "condition")]
    reached = [condition.name]
    if condition.root.opcode == "fusion":
        reached.append(_called(condition.root, "calls"))
    bounds = [
        int(each.inside)
        for name in reached
        for each in program.computations[name].instructions.values()
        if each.opcode == "constant" and each.inside.isdigit()
    ]
    return max(bounds, default=1)


def _traffic(program: Program, computation: Computation, instruction: Instruction) -> int:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0
    if opcode.endswith("-start"):  # its type lists what it reads and what it writes
        return instruction.memory_size
    operands = _operands(computation, instruction)
    if opcode == "fusion":
        fused = program.computations[_called(instruction, "calls")]
        chained = {each.name for each in fused.instructions.values() if _chain(each)}
        return _written(fused, instruction, chained) + sum(
            _read(fused, number, operand, chained) for number, operand in enumerate(operands)
        )
    if opcode in ("dynamic-slice", "gather"):
        return 2 * instruction.memory_size
    if opcode == "dynamic-update-slice":
        return 2 * operands[1].memory_size
    return instruction.memory_size + sum(operand.memory_size for operand in operands)


def _read(fused: Computation, number: int, operand: Instruction, chained: set[str]) -> int:
    """What a kernel reads of an operand: of one that it only slices, the slices.

    Buffers of a chained collective that it only hands on are counted with the collective.
    """
    parameter = next(
        each
        for each in fused.instructions.values()
        if each.opcode == "parameter" and each.inside == str(number)
    )
    uses = list(_uses(fused, parameter.name))
    if chained:
        uses = [use for use in uses if use[0].name not in chained and use[0] is not fused.root]
        if not uses:
            return 0
    if operand.memory_size and uses and all(_takes_part(use, name) for use, name in uses):
        return sum(use.size for use, _ in uses if use.opcode != "dynamic-update-slice")
    return operand.memory_size


def _uses(fused: Computation, name: str) -> Iterator[tuple[Instruction, str]]:
    """Who uses a value inside of a kernel, and under which name (bitcasts only rename)."""
    for each in fused.instructions.values():
        if name in each.operands:
            if each.opcode == "bitcast" and each is not fused.root:
                yield from _uses(fused, each.name)
            else:
                yield each, name


def _takes_part(use: Instruction, name: str) -> bool:
    slices = use.opcode in ("dynamic-slice", "gather", "dynamic-update-slice")
    return slices and use.operands[0] == name and name not in use.operands[1:]


def _written(fused: Computation, fusion: Instruction, chained: set[str]) -> int:
    """What a kernel writes: where it updates a part of an array in place, that part."""
    roots = [fused.root]
    if fused.root.opcode == "tuple":
        roots = [fused.instructions[name] for name in fused.root.operands]
    if chained and fused.root.opcode in ("custom-call", *COLLECTIVES):
        return 0  # begins or ends the collective
    if len(roots) != len(fusion.pieces):
        return fusion.memory_size
    written = 0
    for root, piece in zip(roots, fusion.pieces, strict=True):
        if chained and (root.name in chained or root.opcode == "parameter"):
            continue  # handed on
        while root.opcode == "bitcast" and root.operands[0] in fused.instructions:
            root = fused.instructions[root.operands[0]]
        in_place = root.opcode == "dynamic-update-slice"
        size = fused.instructions[root.operands[1]].size if in_place else piece.size
        written += size if piece.in_memory else 0
    return written


def _operands(computation: Computation, instruction: Instruction) -> list[Instruction]:
    known = computation.instructions
    return [known[name] for name in instruction.operands if name in known]


def _called(instruction: Instruction, how: str) -> str:
    return re.search(rf"{how}=%?([\w.\-]+)", instruction.attributes)[1]


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = re.sub(r"/\*.*?\*/", "", line[head.end() :])
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    close = _closing("(" + rest) - 1
    inside, attributes = rest[:close], rest[close + 1 :]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(head[1], _pieces(kind), opcode, operands, attributes, inside)


def _closing(text: str) -> int:
    """Where the parenthesis that the text begins with is closed."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return at
    raise ValueError(f"no closing parenthesis in {text[:80]!r}.")


def _pieces(kind: str) -> tuple[Piece, ...]:
    found = re.findall(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", kind)
    return tuple(
        Piece(_bits(dtype) * math.prod(map(int, re.findall(r"\d+", dims))) // 8, "S(" not in layout)
        for dtype, dims, layout in found
    )


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    return int((re.search(r"\d+", dtype) or [0])[0])  # s32, f32; f8e4m3 has eight
