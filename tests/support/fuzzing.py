"""Damaged inputs drawn from seeds, and what has to become of each: told, or accepted and usable.

    for seed in range(100):
        with held("dialogues", seed, names="dialogues.jsonl"):
            read(damaged_lines(Random(seed), RECORDS))

`held` lets a `UserError` pass whose message is fit to be shown and names the place; anything else
that is raised fails the test with the seed. `COUNTS` has the outcomes by door; `fuzz_counts.py`
prints them.
"""

from __future__ import annotations

import codecs
import contextlib
import copy
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ilql_jax.errors import UserError

COUNTS: Counter[tuple[str, str]] = Counter()
LONGEST_SECONDS = 20.0  # of one input; a loaded machine is slow
LONGEST_MESSAGE = 3000

# JSON as it is written, much of which Python would not write.
ODD_VALUES = (
    *("1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1e308", "-0.0", "0", "1", "2.5"),
    *("9" * 400, "9" * 5000, "-" + "9" * 5000, str(2**63), str(-(2**80))),
    *("[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000),
    *("[" * 60 + "]" * 60, '{"a":' * 60 + "1" + "}" * 60, "[[[[]]]]"),
    *('"\\ud800"', '"\\udfff and more"', '"\\ud83d\\ude00"', '{"\\ud800": "\\udc00"}'),
    *('""', '" "', '"text"', '"\\u0000"', '"\\u2028\\r\\n"', '"' + "long " * 20_000 + '"'),
    *("null", "true", "false", "[]", "{}", '["a"]', '{"a": null}', '{"a": [1, {"b": 2}]}'),
    *('{"a": NaN}', '{"a": 1e999}', '{"a": ["\\ud800"]}', '["\\ud800", 1e999]', "[NaN]"),
    *('"user"', '"system"', '"test"', '"2024-01-01"', '"1e999"', '"<agent>"', '"</s>"'),
)
_HOLE = "@@odd value@@"


class NotHeld(AssertionError):
    """An input that ended in something else than a message or an accepted value."""


@contextlib.contextmanager
def held(door: str, seed: object, *, names: str | Sequence[str] = ()) -> Iterator[None]:
    """Counts the outcome of one input.

    Args:
        door: Where it comes in.
        seed: Shown where it is not held.
        names: Texts of which the message has to contain one, such as the file's name.
    """
    start = time.monotonic()
    outcome = "accepted"
    try:
        yield
    except (UserError, FileNotFoundError) as error:
        outcome, message = "told", str(error)
        if not 0 < len(message) < LONGEST_MESSAGE:
            raise NotHeld(f"{door}, input {seed}: a message of {len(message)}") from error
        wanted = [names] if isinstance(names, str) else names
        if wanted and not any(name in message for name in wanted):
            raise NotHeld(f"{door}, input {seed}: none of {wanted} is named: {message}") from error
    except BaseException as error:
        raise NotHeld(
            f"{door}, input {seed}: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    seconds = time.monotonic() - start
    if seconds > LONGEST_SECONDS:
        raise NotHeld(f"{door}, input {seed}: took {seconds:.0f} s")
    COUNTS[door, outcome] += 1


def paths(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """Places of everything in nested lists and mappings."""
    if at:
        yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from paths(value[key], (*at, key))


def with_odd_value(rng: random.Random, record: Any, extra: Sequence[tuple] = ()) -> str:
    """The record as JSON, with something odd in one place.

    Args:
        rng: Chooses.
        record: Plain JSON values.
        extra: Further places, which the record has not yet.
    """
    record = copy.deepcopy(record)
    *outer, last = rng.choice([*paths(record), *extra])
    inner = record
    for key in outer:
        inner = inner[key]
    kind = rng.random()
    if kind < 0.1 and isinstance(inner, dict) and last in inner:
        del inner[last]
        return json.dumps(record)
    if kind < 0.15 and isinstance(inner, dict) and last in inner:
        # The same key twice.
        text = json.dumps(record)
        return text.replace(
            f"{json.dumps(last)}:", f'{json.dumps(last)}: "first", {json.dumps(last)}:', 1
        )
    inner[last] = _HOLE
    return json.dumps(record).replace(json.dumps(_HOLE), rng.choice(ODD_VALUES))


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """A file as it may come from an editor, a cut connection or a bad disk."""
    place = rng.randrange(len(content) + 1)
    inserted = rng.choice(
        [b"\x00", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\x1a", b"\r", b"\n"]
    )
    return rng.choice(
        [
            lambda: content[:place],
            lambda: content[place:],
            lambda: content[:place] + inserted + content[place:],
            lambda: content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :],
            lambda: codecs.BOM_UTF8 + content,
            lambda: content.replace(b"\n", b"\n" + codecs.BOM_UTF8),
            lambda: content.replace(b"\n", b"\r\n"),
            lambda: content.replace(b"\n", b"\r"),
            lambda: content.replace(b"\n", b"\n \n\t\n"),
            lambda: content.replace(b"\n", b" "),
            lambda: content.decode().encode("utf-16"),
            lambda: content.decode().encode("utf-16-be"),
            lambda: content.decode().encode("utf-32"),
            lambda: content + content,
            lambda: content + b"{",
            lambda: content + b"\x00" * 100,
            lambda: b"",
            lambda: codecs.BOM_UTF8,
            lambda: b"\n\n",
            lambda: b"[" + content.replace(b"\n", b",") + b"]",
        ]
    )()


def table(counts: Counter[tuple[str, str]]) -> str:
    """Outcomes by door, as Markdown."""
    rows = [(door, counts[door, "told"], counts[door, "accepted"]) for door, _ in counts]
    rows = list(dict.fromkeys(rows))
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = ["| door | inputs | told | accepted, or made again |", "| --- | --- | --- | --- |"]
    lines += [f"| {door} | {told + fine} | {told} | {fine} |" for door, told, fine in rows]
    return "\n".join(lines)


# YAML as people and programs write it, which parses into something that was not meant.
ODD_YAML = (
    *(
        "yes",
        "no",
        "on",
        "~",
        "null",
        "",
        "''",
        "5",
        "-1",
        "0",
        "1.5",
        "1e3",
        "1.0e+3",
        "0x1F",
        "017",
    ),
    *("2024-01-01", "2024-01-01 10:00:00", "2001-99-99", "1:30:00", "59:" * 400 + "1.5", "12:30"),
    *(".inf", "-.inf", ".nan", "1.0e+999", "9" * 400, "9" * 5000, "0x" + "f" * 5000, "1_000"),
    *("!!set {a, b}", "!!binary aGk=", "!!binary a", "!!omap [a: 1]", "!!timestamp x", "!!int x"),
    *(
        "!!bool x",
        "!!float x",
        "!!str 5",
        "!!python/object/apply:os.getcwd []",
        "!own x",
        "!!map []",
    ),
    *(
        "[a, b]",
        "[1, 2]",
        "[[a]]",
        "{a: b}",
        "{1: a}",
        "{~: a}",
        "{[a]: b}",
        "{a: 1, a: 2}",
        "{a: {}}",
    ),
    *(
        "[yes, no]",
        "[a, 2024-01-01]",
        "{axis: [yes, no]}",
        "{axis: [1, 2]}",
        "{2024-01-01: [a, b]}",
    ),
    *("&a [*a]", "&a {b: *a}", "*none", "[&x a, *x, *x]", "{<<: {a: [b, c]}}", "{<<: 5}", "<<: a"),
    *(
        "[" * 10_000,
        "[" * 60 + "]" * 60,
        "[" * 40 + "]" * 40,
        "- a",
        "a: b: c",
        "@a",
        "`a`",
        "%a",
        "%",
    ),
    *(
        '"\\ud800"',
        '"\\0"',
        '"\\u2028"',
        '"open',
        "'open",
        "|\n  block\n  text",
        ">\n  folded",
        "#gone",
    ),
    *(
        "long " * 20_000,
        "score" * 4_000,
        "[" + "x, " * 30_000 + "]",
        "'{{ 1 }}'",
        "${HOME}",
        "../up",
    ),
)


def with_odd_yaml(rng: random.Random, text: str) -> str:
    """YAML of `field: value` lines with an odd value, key, or one of the two missing or twice."""
    lines = text.splitlines()
    place = rng.choice([i for i, line in enumerate(lines) if ":" in line or line.startswith("-")])
    before, colon, _ = lines[place].partition(":")
    if not colon:
        before, colon = "-", ""
    indent = before[: len(before) - len(before.lstrip())]
    kind = rng.random()
    if kind < 0.08:
        del lines[place]
    elif kind < 0.16:
        lines.insert(place, lines[place])
    elif kind < 0.26:
        lines.insert(place, f"{indent}{rng.choice(ODD_YAML)}: added")
    elif kind < 0.32:
        lines.insert(place, f"{indent}{rng.choice(ODD_YAML)}")
    else:
        lines[place] = f"{before}{colon} {rng.choice(ODD_YAML)}"
    return "\n".join(lines) + "\n"
