"""Traffic of a compiled program, to memory and over the interconnect, read from XLA's text.

XLA's own cost analysis counts the body of a loop once, however often it runs, and does not tell
collectives apart; here a loop counts as often as it runs. `text.py` prints the result.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_BITS = {"pred": 8, "token": 0, "s4": 4, "u4": 4, "c64": 64, "c128": 128, "bf16": 16}

# Opcodes that move nothing themselves: they rename arrays, or call what is counted on its own.
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
    """An array of an instruction's type: its bytes; `in_memory` is false for one on the chip."""

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
    inside: str  # text between the parentheses

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(piece.size for piece in self.pieces)

    @property
    def memory_size(self) -> int:
        """Bytes of the result in main memory."""
        return sum(piece.size for piece in self.pieces if piece.in_memory)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program; the last instruction is its root."""

    name: str
    instructions: Mapping[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose value is returned."""
        return list(self.instructions.values())[-1]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program (`compiled.as_text()`) of one device.

    Attributes:
        computations: Computations by name.
        entry: Name of the computation that is run.
        devices: Number of devices that run it together.
    """

    computations: Mapping[str, Computation]
    entry: str
    devices: int


def parse(text: str) -> Program:
    """Parses the text of a compiled module."""
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
    """Counts bytes that a run of the program reads from and writes to a device's main memory.

    Every operand and result of every kernel counts once; a slice counts by its own size; arrays
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
    """Counts bytes that a device sends to others in a run of the program, by kind of collective.

    With n devices in a group, rings send (n − 1)/n of an array that is gathered, scattered or
    exchanged, and twice that of one that is summed on all (Thakur et al., 2005).
    """
    traffic: dict[str, int] = {}
    alone = (
        (times, inside, each)
        for computation, times in _runs(program)
        for inside, each in _collectives(program, computation)
        if not _chain(each)
    )
    for times, computation, each in (*alone, *_chains(program).values()):
        kind = each.opcode.removesuffix("-start")
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # of a TPU: each device keeps its part of the sum
        size = sum(operand.size for operand in _operands(computation, each))
        sent = _sent(kind, size, group_size(each.attributes, program.devices))
        traffic[kind] = traffic.get(kind, 0) + times * sent
    return traffic


def _collectives(
    program: Program, computation: Computation
) -> Iterator[tuple[Computation, Instruction]]:
    """Yields each collective, those inside of fusions included, with its computation."""
    for instruction in computation.instructions.values():
        if instruction.opcode.removesuffix("-start") in COLLECTIVES:
            yield computation, instruction
        elif instruction.opcode in ("fusion", "async-start"):
            yield from _collectives(program, program.computations[_called(instruction, "calls")])


def _chains(program: Program) -> dict[str, tuple[int, Computation, Instruction]]:
    """Returns the runs of each chain of collectives, and one of its parts.

    A TPU carries out one collective in several fusions beside other work. They may stand in loops
    inside of the computation that it begins and ends in, whose runs are the fewest.
    """
    chains: dict[str, tuple[int, Computation, Instruction]] = {}
    for computation, times in _runs(program):
        for inside, each in _collectives(program, computation):
            chain = _chain(each)
            if chain and (chain not in chains or times < chains[chain][0]):
                chains[chain] = times, inside, each
    return chains


def _chain(instruction: Instruction) -> str | None:
    """Returns the name that the parts of one collective share; None if it has one part."""
    chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
    channel = re.search(r"channel_id=(\d+)", instruction.attributes)
    return f"{chain[1]} {channel and channel[1]}" if chain else None


def _sent(kind: str, size: int, group: int) -> int:
    """Counts bytes that each of `group` devices sends, whose own operands have `size` bytes."""
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    if kind == "all-gather":
        return size * (group - 1)
    part = size * (group - 1) // group
    return 2 * part if kind == "all-reduce" else part


def group_size(attributes: str, devices: int) -> int:
    """Reads the number of devices in one group of a collective."""
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
    """Yields the computations that run as such (not inside of a kernel), and their runs."""
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
    """Reads the rounds of a loop: XLA's figure, or the number that its counter is compared with."""
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
    if opcode.endswith("-start"):  # its type lists operands and results
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
    """Counts bytes that a kernel reads of an operand; of one that it only slices, the slices.

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
    """Yields the users of a value in a kernel, and its name there (bitcasts only rename)."""
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
    """Counts bytes that a kernel writes; of an array updated in place, the updated part."""
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


def _called(instruction: Instruction, attribute: str) -> str:
    return re.search(rf"{attribute}=%?([\w.\-]+)", instruction.attributes)[1]


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
    """Returns the index at which the parenthesis that begins the text is closed."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return at
    raise ValueError(f"no closing parenthesis in {text[:80]!r}.")


def _pieces(kind: str) -> tuple[Piece, ...]:
    arrays = re.findall(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", kind)
    return tuple(
        Piece(_bits(dtype) * math.prod(map(int, re.findall(r"\d+", dims))) // 8, "S(" not in layout)
        for dtype, dims, layout in arrays
    )


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    return int((re.search(r"\d+", dtype) or [0])[0])  # s32, f32; f8e4m3 has eight
