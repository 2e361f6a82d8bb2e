"""`Task`: a goal-directed dialogue task in plain words, and as YAML to read and edit by hand."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ilql_jax.errors import UserError, shown
from imagination.checks import MOST_TOTAL, is_finite, is_reward, is_whole, require
from imagination.yaml_files import YAMLProblem, parse_yaml

RATING_STEPS = 20  # from the lowest rating to the highest, for LLMs that rate
MOST_TURNS = 1_000_000  # a line of 10 MB holds fewer
FEWEST_WORDS = 3  # a description of less says nothing that a persona could be derived from
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NUMBER = r"(-?\d{1,9}(?:\.\d{1,9})?)"
_SCALE = re.compile(
    r"(scale|rated|rating|score)\w{0,9} (?:of |from |between )?"
    rf"{_NUMBER} ?(?:to|and|-|–) ?{_NUMBER}",
    re.IGNORECASE,
)


class TaskError(UserError, ValueError):
    """A task that cannot be used. The message names place, field and value, and the way out."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A goal-directed dialogue task.

    Attributes:
        name: Short identifier, used in file names and tables.
        description: The task in a paragraph, as it would be told to a person.
        agent_role: Name of the agent's side ("tutor").
        human_role: Name of the human's side ("student").
        persona_axes: Traits of the human that may be hidden: axis -> possible values.
        reward_range: Worst and best rating of a finished dialogue.
        success_reward: A dialogue rated at least this counts as a success.
        max_turns: Agent turns after which a conversation is over.
        criteria: Criteria of a good dialogue of this task, one sentence each.
        success: Meaning of success, in words.
        reward_unit: Unit of a rating, as in "dollars that are given"; empty = it is a mark.

    Raises:
        TaskError: A field that cannot be used.
    """

    name: str
    description: str
    agent_role: str
    human_role: str
    persona_axes: Mapping[str, tuple[str, ...]]
    reward_range: tuple[float, float]
    success_reward: float
    max_turns: int
    criteria: tuple[str, ...] = ()
    success: str = ""
    reward_unit: str = ""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises `TaskError` for the first field that cannot work."""
        check_name(self.name)
        check_description(self.description)
        for field in ("agent_role", "human_role"):
            _text(field, getattr(self, field), "one or two words, such as 'tutor'")
        self._check_axes()
        self._check_rewards()
        _require(
            is_whole(self.max_turns) and 1 <= self.max_turns <= MOST_TURNS,
            "max_turns",
            self.max_turns,
            f"a whole number of agent turns, at least 1 and at most {MOST_TURNS:,}",
        )
        for field in ("success", "reward_unit"):
            text = getattr(self, field)
            _require(isinstance(text, str), field, text, "text (may be empty)")
        self._check_criteria()

    def _check_axes(self) -> None:
        axes = self.persona_axes
        _require(isinstance(axes, Mapping), "persona_axes", axes, "axis -> list of values")
        for axis, values in axes.items():
            field = f"persona_axes.{axis}"
            _text("persona_axes", axis, "axes with a name")
            _require(isinstance(values, (tuple, list)), field, values, "a list of values")
            _require(len(values) >= 2, field, values, "at least two values: one hides nothing")
            for value in values:
                _text(field, value, "values as text (in YAML, put yes, no and numbers in quotes)")
            same = len({value.strip().lower() for value in values}) < len(values)
            _require(not same, field, values, "values that differ from each other")

    def _check_rewards(self) -> None:
        low, high = check_reward_range(self.reward_range)
        _require(
            is_finite(self.success_reward) and low <= self.success_reward <= high,
            "success_reward",
            self.success_reward,
            f"a number inside reward_range, {low:g} to {high:g}",
        )

    def _check_criteria(self) -> None:
        _require(
            isinstance(self.criteria, (tuple, list)),
            "criteria",
            self.criteria,
            "a list of sentences",
        )
        for index, text in enumerate(self.criteria):
            _text(f"criteria[{index}]", text, "a sentence, or no such criterion")
        same = len({text.strip().lower() for text in self.criteria}) < len(self.criteria)
        _require(not same, "criteria", self.criteria, "criteria that differ from each other")
        # A criterion that speaks of another scale makes an LLM rate on that one.
        worst, best = self.reward_range
        texts = {f"criteria[{i}]": text for i, text in enumerate(self.criteria)}
        for field, text in {**texts, "success": self.success}.items():
            for word, low, high in _SCALE.findall(" ".join(text.split())):
                whole = (float(low), float(high)) == (worst, best)
                part = word.lower() != "scale" and worst <= float(low) and float(high) <= best
                _require(
                    whole or part, field, text, f"the scale of reward_range, {worst:g} to {best:g}"
                )

    def anchors(self) -> list[tuple[str, str]]:
        """Ratings and what each means, the lowest first: for whoever is to rate."""
        (low, high), bar = self.reward_range, self.success_reward
        step = (high - low) / RATING_STEPS
        meaning = self.success.strip().rstrip(".")
        success = f"a success ({meaning})" if meaning else "a success"
        # What a rating counts needs no words in between.
        between = (
            {}
            if self.reward_unit
            else {
                low + (bar - low) / 4: "= it brought little of what mattered",
                low + (bar - low) * 5 / 8: "= some of it was met, something that matters was not",
                (bar + high) / 2: "= a success that left something to wish for",
            }
        )
        meanings = {low: "= it failed altogether", bar: f"or more = {success}"}
        meanings[high] = "= it could not have gone better"
        if bar == high:
            meanings[high] = f"= {success}; it could not have gone better"
        for rating, meaning in between.items():
            rating = low + round((rating - low) / step) * step
            if all(abs(rating - other) >= 0.9 * step for other in meanings):
                meanings[rating] = meaning
        return [(f"{rating:.4g}", meanings[rating]) for rating in sorted(meanings)]

    def to_yaml(self) -> str:
        """The task as YAML that `from_yaml` reads back to an equal task."""
        record = dataclasses.asdict(self)
        record["persona_axes"] = {axis: list(values) for axis, values in self.persona_axes.items()}
        record["reward_range"] = list(map(float, self.reward_range))
        record["criteria"] = list(self.criteria)
        if not self.reward_unit:
            del record["reward_unit"]
        return yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=88)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Task:
        """Reads a task file.

        Raises:
            FileNotFoundError: No such file.
            TaskError: The file cannot be used; the message names it and the field.
        """
        return cls.from_yaml(Path(path).read_bytes(), str(path))

    @classmethod
    def from_yaml(cls, text: str | bytes, where: str = "task.yaml") -> Task:
        """Inverse of `to_yaml`.

        Args:
            text: The YAML, perhaps edited by hand.
            where: The file's name, for messages.

        Raises:
            TaskError: Names `where` and the field at fault.
        """
        try:
            record = parse_yaml(text)
        except YAMLProblem as problem:
            raise TaskError(f"{where}: {problem}. Repair the file.") from None
        if not isinstance(record, dict):
            raise TaskError(f"{where}: expected 'field: value' lines, got {shown(record)!r}.")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in record:
            if key not in fields:
                known = ", ".join(fields)
                raise TaskError(f"{where}: no field is called {key!r}; there are {known}.")
        for name, field in fields.items():
            if field.default is dataclasses.MISSING and name not in record:
                raise TaskError(f"{where}: field {name!r} is missing. Add a line '{name}: ...'.")
        try:
            return cls(**{key: _frozen(value) for key, value in record.items()})
        except TaskError as error:
            raise TaskError(f"{where}: {error}") from None


def check_name(name: Any) -> None:
    """Raises `TaskError` unless `name` can be part of a file name on every system."""
    valid = isinstance(name, str) and _NAME.fullmatch(name)
    _require(bool(valid), "name", name, "letters, digits, _ and -, beginning with no sign")


def check_description(description: Any) -> None:
    """Raises `TaskError` unless there is text enough to derive a task from."""
    _text("description", description, "the task in a paragraph, as told to a person")
    words = [word for word in re.findall(r"\w+", description) if re.search(r"[^\W\d_]", word)]
    _require(
        len(words) >= FEWEST_WORDS,
        "description",
        description,
        f"at least {FEWEST_WORDS} words that say who talks with whom, and what for",
    )


def check_reward_range(rewards: Any) -> tuple[float, float]:
    """Returns worst and best rating. Raises `TaskError` unless they are two rising numbers."""
    is_pair = isinstance(rewards, (tuple, list)) and len(rewards) == 2
    _require(
        is_pair
        and all(is_reward(each, MOST_TOTAL) for each in rewards)
        and rewards[0] < rewards[1],
        "reward_range",
        rewards,
        f"two numbers, the worst rating and a higher best one, at most {MOST_TOTAL:g} up or down",
    )
    return float(rewards[0]), float(rewards[1])


def _frozen(value: Any) -> Any:
    """Lists as tuples, inside mappings too."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return {key: _frozen(each) for key, each in value.items()}
    return value


def _text(field: str, value: Any, expected: str) -> None:
    _require(isinstance(value, str) and bool(value.strip()), field, value, expected)


def _require(condition: bool, field: str, value: Any, expected: str) -> None:
    require(condition, TaskError, "task", field, value, expected)
