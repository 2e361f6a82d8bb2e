"""Entries of `config.methods`: a method, its settings, and the dialogues it learns from.

| entry | learns | from |
| --- | --- | --- |
| `ilql` (any of `METHODS`) | as its file in `ilql_jax/methods/` says | the original dialogues |
| `ilql_hindsight2` | the same | the originals and two rounds of hindsight |
| `ilql_imagination2` | the same | the originals and two rounds of its own conversations |
| `dpo` (any that learns from pairs) | the same | the pairs of the first round |
| `path/to/my_method.py` | as the `METHOD` in that file says | as its `learns_from` says |

A file is executed only where the command line or the experiment's own file names it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.errors import shown
from ilql_jax.methods import METHODS, Method, MethodError, TrainOverrides, load_method
from ilql_jax.train_step import TrainConfig

_ENTRY = re.compile(r"(?P<base>.+?)(_(?P<kind>hindsight|imagination)(?P<rounds>[1-9][0-9]?))?")


class Entry(NamedTuple):
    """Parts of an entry of `config.methods`.

    Attributes:
        base: Method: a name, or a path.
        kind: Kind of its rounds, "hindsight" or "imagination"; "" = none.
        rounds: Number of rounds.
    """

    base: str
    kind: str = ""
    rounds: int = 0


@dataclasses.dataclass(frozen=True)
class TrainedMethod:
    """A method as it is trained and evaluated in a run.

    Attributes:
        name: In tables, and in names of folders: "ilql_hindsight2".
        method: Method with the run's settings.
        train: Length and speed of its training.
        decodings: Ways of choosing words that are tried.
        rounds: Rounds of hindsight it learns from; for pairs, those it needs.
        file: Python file that defines the method; "" = one of `METHODS`.
        imagination_rounds: Rounds of imagination it learns from.
        imagination_share: Share of the steps of a training without such rounds that one with them
            takes; where there are rounds, `train` has these steps already.
        imagination_goes_on: A training with such rounds starts from the agent that held the last.
    """

    name: str
    method: Method
    train: TrainConfig
    decodings: tuple[DecodingConfig, ...]
    rounds: int = 0
    file: str = ""
    imagination_rounds: int = 0
    imagination_share: float = 1.0
    imagination_goes_on: bool = False

    @property
    def takes_part(self) -> str:
        """Name of the trained method that holds the conversations of its last round of imagination.

        Empty without such rounds.
        """
        if not self.imagination_rounds:
            return ""
        return entry_name(self.method.name, "imagination", self.imagination_rounds - 1)

    @property
    def starts_from(self) -> str | None:
        """Name of the trained method of the same seed that it goes on from; None = of no other."""
        return (self.imagination_goes_on and self.takes_part) or self.method.starts_from

    @property
    def learns_from_pairs(self) -> bool:
        return self.method.learns_from == "pairs"

    @property
    def learns_values(self) -> bool:
        return self.method.learns_values

    def named(self, name: str, rounds: int = 0, imagination_rounds: int = 0) -> TrainedMethod:
        """The method, without rounds so far, under another name and with rounds."""
        named = dataclasses.replace(
            self, name=name, rounds=rounds, imagination_rounds=imagination_rounds
        )
        if not imagination_rounds:
            return named
        steps = max(1, round(self.imagination_share * self.train.steps))
        return dataclasses.replace(
            named,
            method=self.method.when_going_on() if self.imagination_goes_on else self.method,
            train=dataclasses.replace(self.train, steps=steps),
        )

    def __reduce__(self):
        # Functions and classes of a file of one's own cannot be imported by name in another
        # process: the file is loaded again there.
        settings = dict(vars(self.method.config))
        overrides = None if self.method.train is None else dict(vars(self.method.train))
        others = {name: value for name, value in vars(self).items() if name != "method"}
        return _restored, (self.method.name, settings, overrides, others)


def _restored(
    base: str,
    settings: dict[str, Any],
    overrides: dict[str, Any] | None,
    others: dict[str, Any],
) -> TrainedMethod:
    method = load_own(others["file"]) if others["file"] else METHODS[base]
    return TrainedMethod(method=configured(method, settings, overrides), **others)


def configured(
    method: Method, settings: Mapping[str, Any], overrides: Mapping[str, Any] | None
) -> Method:
    """The method with other settings, and other overrides of the training where it has some."""
    train = None if overrides is None else TrainOverrides(**overrides)
    return dataclasses.replace(method.configured(**settings), train=train)


def split_entry(entry: str) -> Entry:
    """Splits an entry of `config.methods` into its method and its rounds."""
    found = _ENTRY.fullmatch(entry)
    if not found:
        return Entry(entry)
    return Entry(found["base"], found["kind"] or "", int(found["rounds"] or 0))


def entry_name(base: str, kind: str, rounds: int) -> str:
    """Name of a method with rounds, as in entries and folders: "ilql_hindsight2"."""
    return f"{base}_{kind}{rounds}" if rounds else base


def is_file(base: str) -> bool:
    return base.endswith(".py")


@functools.cache
def load_own(file: str) -> Method:
    """Executes a Python file and returns its `METHOD`, once per process.

    Raises:
        MethodError: The file cannot be used; the message says why.
    """
    try:
        return load_method(file)
    except MethodError as error:
        raise MethodError(f"config.methods: {error}") from error


def own_files(entries: Iterable[str]) -> tuple[str, ...]:
    """Python files among entries of `config.methods`."""
    bases = (split_entry(entry).base for entry in entries)
    return tuple(dict.fromkeys(base for base in bases if is_file(base)))


def file_digest(file: str) -> str:
    """Fingerprint of a method's file, by which a run notices that it was edited."""
    return hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest()[:16]


def find_method(entry: str, library: Mapping[str, TrainedMethod]) -> TrainedMethod:
    """The method that an entry names.

    Args:
        entry: Entry of `config.methods`.
        library: Name -> method without hindsight, for all methods there are.

    Raises:
        MethodError: There is no such method, or it cannot learn from these rounds.
    """
    base, kind, rounds = split_entry(entry)
    if is_file(base):
        base = load_own(base).name
    if base not in library:
        raise MethodError(
            f"there is no method {shown(entry)!r}; there are {', '.join(library)}, those that "
            "learn from dialogues also with rounds of hindsight or of imagination (up to 99) as in "
            "ilql_hindsight1 and ilql_imagination1, and those of a .py file that defines METHOD."
        )
    found = library[base]
    if found.learns_from_pairs:
        if rounds:
            raise MethodError(
                f"{entry!r}: {base} learns from pairs, which are those of the first round. Name "
                f"{base}."
            )
        return found.named(base, rounds=1)
    count = {"imagination_rounds" if kind == "imagination" else "rounds": rounds}
    return found.named(entry_name(base, kind, rounds), **count)


def rounds_of(methods: Sequence[TrainedMethod]) -> int:
    """Rounds of hindsight that these methods need; 0 = none."""
    return max((each.rounds for each in methods), default=0)


def in_order(methods: Sequence[TrainedMethod]) -> list[list[TrainedMethod]]:
    """Methods in waves: each after those that it starts from or whose conversations it learns from.

    Raises:
        MethodError: One needs a method that is not among them, or they need each other.
    """
    waves: list[list[TrainedMethod]] = []
    done: set[str] = set()
    left = list(methods)
    while left:
        wave = [
            each
            for each in left
            if each.starts_from in {None, *done} and each.takes_part in {"", *done}
        ]
        if not wave:
            before, name = left[0].starts_from, left[0].name
            if left[0].takes_part not in {"", *done}:
                raise MethodError(
                    f"{name} learns from the conversations of {left[0].takes_part}. Name that too."
                )
            raise MethodError(
                f"{name} goes on from the {before} of its seed. Name {before} too, and let it not "
                f"start from {name}."
            )
        waves.append(wave)
        done |= {each.name for each in wave}
        left = [each for each in left if each not in wave]
    return waves
