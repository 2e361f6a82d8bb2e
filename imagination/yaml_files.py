"""`parse_yaml`: YAML of somebody else's, in bounded time and memory.

A page of YAML can stand for gigabytes (aliases of aliases), for itself, or for more nesting than a
stack has room for. All of this is told before anything is made of it. Afterwards, what parses into
something else than the text, numbers, lists and mappings of settings: dates, sets, infinities.
"""

from __future__ import annotations

from typing import Any

import yaml

from ilql_jax.errors import shown
from imagination.plain_data import plain

# Settings are some 10 KB; a task is less.
MOST_BYTES, MOST_NODES, DEEPEST = 250_000, 20_000, 50


class YAMLProblem(ValueError):
    """Text that is no YAML, or too much of it; for callers to name the file."""


def parse_yaml(text: str | bytes) -> Any:
    """Plain values, as JSON has them; nothing in them is shared.

    Raises:
        YAMLProblem: It is not valid YAML, refers to itself, or stands for too much; a key is given
            twice or is no text, a value is a date, a set, not finite or something else.
    """
    size = len(text)
    if size > MOST_BYTES:
        raise YAMLProblem(f"it has {size:,} bytes, and at most {MOST_BYTES:,} are read")
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        _check_events(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {})
            return plain(loader.construct_document(node), "", "", YAMLProblem)
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise YAMLProblem(f"it is not UTF-8 ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        raise YAMLProblem(f"not valid YAML: {' '.join(str(error).split())}") from None
    except UnicodeEncodeError:
        raise YAMLProblem("it holds a lone surrogate, half of a sign") from None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Tells the line of a value that PyYAML cannot make."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
            # Dates that do not exist, numbers of too many digits, keys that are lists.
            raise YAMLProblem(
                f"line {node.start_mark.line + 1} cannot be read ({error}); what is text belongs "
                "in quotes"
            ) from None


def _check_events(text: str) -> None:
    """Checks nesting and number of what is written, before any of it is kept."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, _Loader)):
        if count > 2 * MOST_NODES:
            raise YAMLProblem(f"it has more than {MOST_NODES:,} values")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                line = event.start_mark.line + 1
                raise YAMLProblem(f"line {line} is nested deeper than {DEEPEST} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _count(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Values that a node stands for, each alias counted in full."""
    line = node.start_mark.line + 1
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise YAMLProblem(f"what begins in line {line} contains itself")
        return count
    known[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [each for pair in node.value for each in pair]
        _check_keys(node)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    count = 1 + sum(_count(each, known) for each in children)
    if count > MOST_NODES:
        raise YAMLProblem(
            f"what begins in line {line} stands for more than {MOST_NODES:,} values; write out "
            "what its aliases (*name) stand for, as far as it is needed"
        )
    known[id(node)] = count
    return count


def _check_keys(node: yaml.MappingNode) -> None:
    """A key that is given twice is an error; PyYAML takes the last."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            line = key.start_mark.line + 1
            if key.value in lines:
                raise YAMLProblem(
                    f"the key {shown(key.value)!r} stands twice, in line {lines[key.value]} and in "
                    f"line {line}"
                )
            lines[key.value] = line
