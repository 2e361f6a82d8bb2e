"""Mutants of a Python file: small faults, each a change of a few characters of its source.

`candidates(source)` lists all of them, in the order of the file; `tests/mutants.py` draws some and
asks whether the tests notice. Nothing is mutated where a fault could not be seen or would only be
a message's: docstrings, annotations, decorators, text, imports, what stands behind `raise`.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
from collections.abc import Iterator

_ARITHMETIC = {
    ast.Add: ("+", ["-"]),
    ast.Sub: ("-", ["+"]),
    ast.Mult: ("*", ["/"]),
    ast.Div: ("/", ["*"]),
    ast.FloorDiv: ("//", ["*"]),
    ast.Mod: ("%", ["*"]),
    ast.Pow: ("**", ["*"]),
    ast.BitAnd: ("&", ["|"]),
    ast.BitOr: ("|", ["&"]),
}
_COMPARISONS = {
    ast.Lt: ("<", ["<=", ">"]),
    ast.LtE: ("<=", ["<", ">"]),
    ast.Gt: (">", [">=", "<"]),
    ast.GtE: (">=", [">", "<"]),
    ast.Eq: ("==", ["!="]),
    ast.NotEq: ("!=", ["=="]),
    ast.Is: ("is", ["is not"]),
    ast.IsNot: ("is not", ["is"]),
    ast.In: ("in", ["not in"]),
    ast.NotIn: ("not in", ["in"]),
}
_FUNCTIONS = [
    ("min", "max"),
    ("minimum", "maximum"),
    ("argmin", "argmax"),
    ("any", "all"),
    ("sum", "mean"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("logical_and", "logical_or"),
    ("softmax", "log_softmax"),
    ("floor", "ceil"),
]
_NAMES = [("state", "next_state"), ("v", "next_v"), ("low", "high"), ("first", "last")]
_SWAPS = {a: b for pair in _FUNCTIONS for a, b in (pair, pair[::-1])}
_SIBLINGS = {a: b for pair in _NAMES for a, b in (pair, pair[::-1])}
# Keyword arguments that a call also works without.
_DROPPED = {"axis", "weight", "weights", "where", "mask", "keepdims", "initial", "side", "ddof"}
# Calls whose first two arguments may be swapped without effect, or only with a crash.
_UNSWAPPED = {"isinstance", "getattr", "hasattr", "setattr", "zip", "partial", "field", "setting"}
_UNSWAPPED |= {"minimum", "maximum", "logical_and", "logical_or", "min", "max", "full", "range"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault: some bytes of a file, and what stands there instead.

    Attributes:
        module: Dotted name.
        line: Of the statement that changed, from 1.
        fault: Kind of change, in words.
        original: The whole file, UTF-8.
        start: First byte that changes.
        end: One past the last.
        new: What stands there instead.
    """

    module: str
    line: int
    fault: str
    original: bytes = dataclasses.field(repr=False)
    start: int
    end: int
    new: str

    @property
    def source(self) -> str:
        """The whole mutated file."""
        parts = self.original[: self.start], self.new.encode(), self.original[self.end :]
        return b"".join(parts).decode()

    @property
    def before(self) -> str:
        """The changed lines as they were, without indentation."""
        return _joined(self._lines()[1])

    @property
    def after(self) -> str:
        """The changed lines as they became."""
        (start, end), _ = self._lines()
        new = self.original[start : self.start] + self.new.encode() + self.original[self.end : end]
        return _joined(new)

    @property
    def parses(self) -> bool:
        """True if it is a program at all."""
        try:
            ast.parse(self.source)
        except SyntaxError:
            return False
        return True

    @property
    def diff(self) -> str:
        """Unified, for reading."""
        old, new = self.original.decode().splitlines(), self.source.splitlines()
        path = self.module.replace(".", "/") + ".py"
        return "\n".join(difflib.unified_diff(old, new, path, path, n=1, lineterm=""))

    def _lines(self) -> tuple[tuple[int, int], bytes]:
        start = self.original.rfind(b"\n", 0, self.start) + 1
        end = self.original.find(b"\n", self.end)
        end = len(self.original) if end < 0 else end
        return (start, end), self.original[start:end]


def _joined(lines: bytes) -> str:
    return " ".join(line.strip() for line in lines.decode().splitlines())


def candidates(module: str, source: str) -> list[Mutant]:
    """Every mutant of a file, each once."""
    text = source.encode()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = {}
    for statement, edit in _Walker(text, starts).edits(ast.parse(source)):
        place = edit.start, edit.end, edit.new
        if place not in found and edit.new.encode() != text[edit.start : edit.end]:
            found[place] = Mutant(module, statement, edit.fault, text, *place)
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class _Edit:
    start: int
    end: int
    new: str
    fault: str


class _Walker:
    """Walks a tree and lists edits of the source, with the statement that each belongs to."""

    def __init__(self, text: bytes, starts: list[int]):
        self._text, self._starts = text, starts
        self._names: set[str] = set()

    def edits(self, tree: ast.Module) -> Iterator[tuple[int, _Edit]]:
        self._names = {x.id for x in ast.walk(tree) if isinstance(x, ast.Name)}
        self._names |= {"." + x.attr for x in ast.walk(tree) if isinstance(x, ast.Attribute)}
        for statement, node, parent in _code(tree):
            for edit in self._of(node, parent):
                yield statement.lineno, edit

    def _of(self, node: ast.AST, parent: ast.AST) -> Iterator[_Edit]:
        match node:
            case ast.BinOp():
                yield from self._arithmetic(node)
            case ast.Compare():
                yield from self._comparison(node)
            case ast.BoolOp():
                yield from self._logic(node)
            case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
                yield self._replace(node, f"({_words(node.operand)})", "sign or negation dropped")
            case ast.Constant():
                yield from self._constant(node, parent)
            case ast.Call():
                yield from self._call(node)
            case ast.If() | ast.IfExp():
                yield self._replace(node.test, f"(not ({_words(node.test)}))", "condition negated")
            case ast.comprehension():
                for test in node.ifs:
                    yield self._replace(test, f"(not ({_words(test)}))", "condition negated")
            case ast.AugAssign():
                yield from self._in_place(node)
            case ast.Expr(value=ast.Call()):
                yield self._replace(node, "pass", "statement dropped")
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                if any(isinstance(x, ast.Name) and x.id == name for x in ast.walk(value)):
                    yield self._replace(node, "pass", "reassignment dropped")
            case ast.Attribute(attr=name) if "." + _SIBLINGS.get(name, "") in self._names:
                _, end = self._span(node)
                new = _SIBLINGS[name]
                yield _Edit(end - len(name), end, new, f"{name} -> {new}")
            case ast.Name(id=name, ctx=ast.Load()) if _SIBLINGS.get(name) in self._names:
                yield self._replace(node, _SIBLINGS[name], f"{name} -> {_SIBLINGS[name]}")

    def _arithmetic(self, node: ast.BinOp) -> Iterator[_Edit]:
        if type(node.op) not in _ARITHMETIC or _is_text(node.left) or _is_text(node.right):
            return
        old, news = _ARITHMETIC[type(node.op)]
        for new in news:
            yield self._operator(node.left, node.right, old, new)
        yield self._replace(node, f"({_words(node.left)})", "right operand dropped")
        if isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.BitAnd | ast.BitOr):
            yield self._replace(node, f"({_words(node.right)})", "left operand dropped")

    def _comparison(self, node: ast.Compare) -> Iterator[_Edit]:
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, operands[1:], strict=False):
            old, news = _COMPARISONS[type(op)]
            for new in news:
                yield self._operator(left, right, old, new)

    def _logic(self, node: ast.BoolOp) -> Iterator[_Edit]:
        is_and = isinstance(node.op, ast.And)
        other = " or " if is_and else " and "
        parts = [f"({_words(value)})" for value in node.values]
        yield self._replace(node, f"({other.join(parts)})", "and <-> or")
        for i in range(len(parts)):
            rest = (" and " if is_and else " or ").join(parts[:i] + parts[i + 1 :])
            yield self._replace(node, f"({rest})", "condition dropped")

    def _constant(self, node: ast.Constant, parent: ast.AST) -> Iterator[_Edit]:
        value = node.value
        if isinstance(parent, ast.keyword) and parent.arg == "strict":
            return  # of `zip`: a guard that is never hit
        if isinstance(parent, ast.keyword) and parent.arg == "axis":
            # Not 1 for -1: of most arrays here that is the same axis.
            yield self._replace(node, "1" if value == 0 else "0", "another axis")
        elif isinstance(value, bool):
            yield self._replace(node, str(not value), "constant")
        elif isinstance(value, int) and value > 100:  # one more of so many is never seen
            yield self._replace(node, str(2 * value), "constant, doubled")
        elif isinstance(value, int):
            yield self._replace(node, str(value + 1), "constant, one more")
            yield self._replace(node, f"({value - 1})", "constant, one less")
        elif isinstance(value, float):
            yield self._replace(node, repr(value + 1.0 if abs(value) > 1e-3 else 1.0), "constant")

    def _call(self, node: ast.Call) -> Iterator[_Edit]:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in _SWAPS:
            _, end = self._span(node.func)
            yield _Edit(end - len(name), end, _SWAPS[name], f"{name} -> {_SWAPS[name]}")
        plain = [not isinstance(each, ast.Starred) for each in node.args]
        if name == "where" and len(node.args) == 3:
            yield self._swap(node.args[1], node.args[2])
        elif (
            len(plain) >= 2
            and all(plain[:2])
            and name not in _UNSWAPPED
            and not any(map(_is_text, node.args[:2]))
        ):
            yield self._swap(*node.args[:2])
        if name in ("stop_gradient", "abs") and len(node.args) == 1:
            yield self._replace(node, f"({_words(node.args[0])})", f"{name} removed")
        for keyword in node.keywords:
            if keyword.arg in _DROPPED:
                others = [each for each in node.keywords if each is not keyword]
                rest = ast.Call(node.func, node.args, others)
                yield self._replace(node, _words(rest), f"argument {keyword.arg} dropped")

    def _in_place(self, node: ast.AugAssign) -> Iterator[_Edit]:
        yield self._replace(node, "pass", "statement dropped")
        if type(node.op) in _ARITHMETIC:
            old, news = _ARITHMETIC[type(node.op)]
            yield self._operator(node.target, node.value, old + "=", news[0] + "=")

    def _operator(self, left: ast.AST, right: ast.AST, old: str, new: str) -> _Edit:
        start, end = self._span(left)[1], self._span(right)[0]
        gap = self._text[start:end].decode()
        bounded = rf"\b{old}\b" if old.isalpha() else re.escape(old)
        return _Edit(start, end, re.sub(bounded, new, gap, count=1), f"{old} -> {new}")

    def _swap(self, a: ast.AST, b: ast.AST) -> _Edit:
        (start, a_end), (b_start, end) = self._span(a), self._span(b)
        text = self._text
        new = text[b_start:end] + text[a_end:b_start] + text[start:a_end]
        return _Edit(start, end, new.decode(), "arguments swapped")

    def _replace(self, node: ast.AST, new: str, fault: str) -> _Edit:
        return _Edit(*self._span(node), new, fault)

    def _span(self, node: ast.AST) -> tuple[int, int]:
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset


def _code(tree: ast.Module) -> Iterator[tuple[ast.stmt, ast.AST, ast.AST]]:
    """Each node that is worth a mutant, with the statement it stands in and its parent."""

    def visit(node: ast.AST, parent: ast.AST, statement: ast.stmt | None):
        if isinstance(node, ast.stmt):
            statement = node
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom | ast.ClassDef):
            # Of classes, the methods alone: fields are declarations.
            for child in getattr(node, "body", ()):
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from visit(child, node, child)
            return
        if statement is not None:
            yield statement, node, parent
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, node, statement)

    for statement in tree.body:
        if _is_declaration(statement):
            continue
        yield from visit(statement, tree, statement)


def _is_declaration(statement: ast.stmt) -> bool:
    """Docstrings, type aliases and `if TYPE_CHECKING`."""
    match statement:
        case ast.Expr(value=ast.Constant()) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(value=ast.Subscript()):
            return True
    return False


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


_words = ast.unparse
