"""Step task: derives a `Task` from its description. Fields that are given are not asked for."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import pydantic

from imagination.engine.config import EngineError
from imagination.llm.requests import Declined, Request
from imagination.llm.schemas import Bounded, Name, Paragraph, Sentence
from imagination.llm.session import LLM, NoAnswer, Session
from imagination.prompts import load_prompt
from imagination.task import Task, check_description, check_name, check_reward_range

DERIVED = ("agent_role", "human_role", "persona_axes", "criteria", "success", "max_turns")
SUCCESS_FROM = 0.8  # of the way from the worst to the best rating
MAX_TURNS = (3, 20)
# Clauses in which models say that there is nothing to say, each a whole one: "no reason" is none,
# "no reason to talk" is one.
_IS = "(?: (?:is|are|was|were))?"
_FAULT = "(?:reason|issue|problem|concern|objection|fault|error|flaw|ambiguity|ambiguitie)s?"
_SEEN = "(?: (?:found|needed|required|necessary|applicable|identified|detected|noted|here|at all))?"
_LACKS = "(?:missing|lacking|wrong|unclear|ambiguous|needed|required)"
_THIS = "(?:it|this|that|all|everything|(?:the|this) (?:description|task|paragraph|text))"
_GOOD = "(?:usable|sufficient|enough|clear|complete|fine|good|valid|ok|okay|detailed)(?: enough)?"
_NO_REASON = re.compile(
    "|".join(
        (
            "(?:(?:an|the|left|leave) )?(?:empty|blank)(?: string| text| field)?",
            "no|n/a|na|nil|null|false|not (?:applicable|needed|required)",
            f"none{_IS}{_SEEN}",
            f"(?:(?:there|{_THIS}) (?:is|are|has) )?no {_FAULT}{_IS}{_SEEN}",
            f"(?:there is )?no reason{_IS} given",
            f"(?:there is )?nothing(?:{_IS} {_LACKS}| to (?:say|add|report|mention|note))?",
            f"no (?:information|details?|data){_IS} (?:missing|lacking)",
            f"(?:{_THIS} is )?(?:fully |not un)?{_GOOD}(?: and {_GOOD})*(?: as (?:it )?is)?",
        )
    )
)
_CLAUSE_ENDS = re.compile(r"[^\w\s/'’]+")
AXES, AXIS_VALUES, CRITERIA = (2, 4), (2, 5), (1, 6)  # fewest and most


def _items(bounds: tuple[int, int]) -> dict[str, int]:
    """Keywords of a list in a JSON schema."""
    return {"minItems": bounds[0], "maxItems": bounds[1]}


class Axis(pydantic.BaseModel):
    name: Name
    values: list[Name] = pydantic.Field(json_schema_extra=_items(AXIS_VALUES))


FIELD_TYPES = {
    "agent_role": Name,
    "human_role": Name,
    "persona_axes": list[Axis],
    "criteria": list[Sentence],
    "success": Paragraph,
    "max_turns": int,
}


class DerivedFields(Bounded):
    """Base of the answer's schema, which has the fields that are missing (see `_schema`)."""

    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    unusable_because: Sentence

    @classmethod
    def bounds(cls) -> dict[str, dict[str, int]]:
        return {
            "persona_axes": _items(AXES),
            "criteria": _items(CRITERIA),
            "max_turns": {"minimum": MAX_TURNS[0], "maximum": MAX_TURNS[1]},
        }

    @pydantic.model_validator(mode="after")
    def _complete(self) -> DerivedFields:
        """Leaves out what goes beyond the most that is asked for; else all must be usable."""
        if self.verdict:
            return self
        axes = getattr(self, "persona_axes", None)
        if axes is not None:
            del axes[AXES[1] :]
            _within("persona_axes", len(axes), *AXES, "axes")
            for axis in axes:
                del axis.values[AXIS_VALUES[1] :]
                _within(f"axis {axis.name!r}", len(axis.values), *AXIS_VALUES, "values")
            if len({axis.name.strip().lower() for axis in axes}) < len(axes):
                raise ValueError("two axes have the same name")
        if (criteria := getattr(self, "criteria", None)) is not None:
            del criteria[CRITERIA[1] :]
            _within("criteria", len(criteria), *CRITERIA, "sentences")
        if (turns := getattr(self, "max_turns", None)) is not None:
            _within("max_turns", turns, *MAX_TURNS, "turns")
        if not getattr(self, "success", "nothing asked").strip():
            raise ValueError("success is empty")
        # The same checks as for a task written by hand; the message goes back to the model.
        known = {"description": "Somebody talks to somebody.", "reward_range": self.reward_range}
        task_from("derived", {**known, **self.fields()})
        return self

    @property
    def verdict(self) -> str:
        """Reason why the description is not enough; "" where there is none, however it is put."""
        reason = self.unusable_because.strip()
        clauses = (" ".join(each.split()) for each in _CLAUSE_ENDS.split(reason.casefold()))
        words = (each.strip("'’/ ") for each in clauses)
        return "" if all(_NO_REASON.fullmatch(each) for each in words if each) else reason

    def fields(self) -> dict[str, Any]:
        """The derived values, as fields of `Task`."""
        fields: dict[str, Any] = {}
        for name in DERIVED:
            if not hasattr(self, name):
                continue
            value = getattr(self, name)
            if name == "persona_axes":
                value = {a.name.strip(): tuple(map(str.strip, a.values)) for a in value}
            elif name == "criteria":
                value = tuple(map(str.strip, value))
            fields[name] = value.strip() if isinstance(value, str) else value
        return fields

    @classmethod
    def placeholder(cls) -> DerivedFields:
        """An answer of ordinary size, for forecasts."""
        return cls(
            unusable_because="", **{n: v for n, v in PLACEHOLDER.items() if n in cls.model_fields}
        )


PLACEHOLDER = {
    "agent_role": "agent",
    "human_role": "human",
    "persona_axes": [
        Axis(name=f"trait {letter}", values=[f"{letter} value {i}" for i in (1, 2, 3)])
        for letter in "ABC"
    ],
    "criteria": [f"The dialogue shows what matters in this task, part {i}." for i in (1, 2, 3)],
    "success": "The human got what they came for and says so in their own words.",
    "max_turns": 8,
}


def missing_fields(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that have to be derived: those that are absent or empty."""
    return tuple(name for name in DERIVED if not given.get(name))


def derive_request(name: str, given: Mapping[str, Any]) -> Request:
    """Asks for all missing fields in one call."""
    missing = missing_fields(given)
    known = {field: _words(given[field]) for field in DERIVED if field not in missing}
    values = {"description": given["description"], "given": known, "missing": missing}

    def check(answer: DerivedFields) -> None:
        if answer.verdict:
            raise Declined(
                f"the description is not enough: {answer.verdict} It was "
                f"{given['description'][:80]!r}; say who talks with whom, and what for."
            )

    return load_prompt("engine/task").request(_schema_for(given), values, label=name, check=check)


async def derive_task(llm: LLM, name: str, given: Mapping[str, Any]) -> Task:
    """Completes a task of which some fields are given.

    Args:
        llm: The LLM client.
        name: The task's name.
        given: Fields of `Task`, `description` at least. Empty ones are derived; the reward
            scale, where absent, is 0 to 1, and success begins at 0.8 of the way up.

    Raises:
        TaskError: A given field that cannot be used.
        EngineError: The description does not let anyone imagine a dialogue, or no usable answer.
    """
    check_name(name)
    check_description(given.get("description"))
    missing = missing_fields(given)
    # Given fields are checked before anything is paid for.
    task_from(name, {**task_placeholders(given), **_present(given)})
    if not missing:
        return task_from(name, given)
    try:
        answer = await Session(llm).ask(derive_request(name, given))
    except NoAnswer as error:
        raise EngineError(
            f"Task {name!r} could not be derived: {error.reason} Give more of it in the config "
            f"(missing: {', '.join(missing)}), or write {name}'s task.yaml by hand."
        ) from None
    return task_from(name, {**_present(given), **answer.fields()})


def task_placeholders(given: Mapping[str, Any]) -> dict[str, Any]:
    """Stand-ins of ordinary size for the fields that are still to be derived."""
    return _schema_for(given).placeholder().fields()


def task_from(name: str, fields: Mapping[str, Any]) -> Task:
    """A task from its fields; scale and, where absent, everything derivable get stand-ins."""
    axes = {axis.name: axis.values for axis in PLACEHOLDER["persona_axes"]}
    scale = {"reward_range": DerivedFields.reward_range}
    whole = {**scale, **PLACEHOLDER, "persona_axes": axes, **_present(fields), "name": name}
    for field in ("reward_range", "criteria"):
        if isinstance(whole[field], list):
            whole[field] = tuple(whole[field])
    if isinstance(whole["persona_axes"], Mapping):
        whole["persona_axes"] = {
            axis: tuple(values) if isinstance(values, list) else values
            for axis, values in whole["persona_axes"].items()
        }
    if "success_reward" not in whole:
        low, high = check_reward_range(whole["reward_range"])
        whole["success_reward"] = low + SUCCESS_FROM * (high - low)
    return Task(**whole)


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    # 0 may be meant (success_reward); for what can be derived, empty means: derive it.
    return {k: v for k, v in fields.items() if v or (k not in DERIVED and v == 0)}


def _schema_for(given: Mapping[str, Any]) -> type[DerivedFields]:
    low, high = check_reward_range(given.get("reward_range") or DerivedFields.reward_range)
    return _schema(missing_fields(given), low, high)


@functools.cache
def _schema(missing: tuple[str, ...], low: float, high: float) -> type[DerivedFields]:
    fields = {name: (FIELD_TYPES[name], ...) for name in missing}
    schema = pydantic.create_model("DerivedFields", __base__=DerivedFields, **fields)
    schema.reward_range = (low, high)
    return schema


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{axis}: {', '.join(values)}" for axis, values in value.items())
    return " ".join(value) if isinstance(value, (tuple, list)) else str(value)


def _within(what: str, count: int, low: int, high: int, unit: str) -> None:
    if not low <= count <= high:
        raise ValueError(f"{what}: {low} to {high} {unit} are asked for, got {count}")
