"""`parse_yaml`: YAML of somebody else's, in bounded time and memory.

A page of YAML can stand for gigabytes (aliases of aliases), for itself, or for more nesting than a
stack has room for. All of this is told before anything is made of it.
"""

from __future__ import annotations

from typing import Any

import yaml

# Settings are some 10 KB; a task is less.
MOST_BYTES, MOST_NODES, DEEPEST = 250_000, 20_000, 50


class YAMLProblem(ValueError):
    """Text that is no YAML, or too much of it; for callers to name the file."""


def parse_yaml(text: str | bytes) -> Any:
    """Plain values, as `yaml.safe_load` returns them.

    Raises:
        YAMLProblem: It is not valid YAML, refers to itself, or stands for too much.
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
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise YAMLProblem(f"it is not UTF-8 ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        raise YAMLProblem(f"not valid YAML: {' '.join(str(error).split())}") from None
    except YAMLProblem:
        raise
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        # Dates that do not exist, numbers of too many digits, keys that are lists.
        raise YAMLProblem(f"not valid YAML: {error}") from None


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
