"""`Questionnaire`: everything that a participant reads and is asked, out of one YAML file.

    python experiments/study.py --runs=runs/teaching --questionnaire=mine.yaml

`questionnaires/` has one for each task that comes with this repository, and `default.yaml` for all
others. Whatever stands in the file can be changed there; no code knows a question by its name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from experiments.human_study.words import ENGLISH, Words, blanks, english
from experiments.notices import NOTICES
from ilql_jax.errors import UserError, shown
from imagination.checks import is_whole, require
from imagination.yaml_files import YAMLProblem, parse_yaml

FOLDER = Path(__file__).with_name("questionnaires")
MOST_TEXT, MOST_QUESTIONS, MOST_POINTS, MOST_TURNS = 20_000, 40, 11, 200
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8}){0,4}")


class QuestionnaireError(UserError, ValueError):
    """A questionnaire that cannot be used. The message names file, line, field and the way out."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A rating of an agent, on a scale of whole numbers.

    Attributes:
        name: Column of the results: small letters, digits and _.
        text: Words of the question.
        scale: Lowest and highest rating.
        anchors: Words of the two ends, or of each point.
    """

    name: str
    text: str
    scale: tuple[int, int]
    anchors: tuple[str, ...]

    @property
    def points(self) -> list[tuple[int, str]]:
        """Rating and its words ("" where it has none), from low to high."""
        low, high = self.scale
        if len(self.anchors) == high - low + 1:
            return list(zip(range(low, high + 1), self.anchors, strict=True))
        ends = {low: self.anchors[0], high: self.anchors[-1]}
        return [(point, ends.get(point, "")) for point in range(low, high + 1)]


@dataclasses.dataclass(frozen=True)
class AttentionCheck:
    """An item among the ratings whose answer its words give.

    Attributes:
        text: Words of the item, which name the answer.
        answer: The answer, on the scale of the first question.
        after: Number of the conversation, from 1, after which it is asked.
    """

    text: str
    answer: int
    after: int = 1


@dataclasses.dataclass(frozen=True)
class Questionnaire:
    """Everything that a participant reads and is asked.

    Attributes:
        title: Title of the pages; names no agent and no method.
        consent: Text before anything else. Notices of the task are shown with it, always.
        agree: Words of the box that must be ticked.
        instructions: Text of the second page.
        card: Scenario: whom the participant is to be.
        personas: Trait of the task -> value -> sentence on the card; empty = "be yourself".
        opens: First speaker, `"human"` or `"agent"`.
        fewest_turns: Turns of the participant without which a conversation cannot be rated.
        most_turns: Turns of the participant after which it is over; 0 = as the task says.
        questions: Ratings after each agent.
        ranking: Words of the last question, which orders all agents; "" = none.
        attention: The attention check; None = none.
        comment: Words above the free comment of the last page; "" = none.
        thanks: Text of the last page.
        reward: Question whose rating becomes the reward of a conversation.
        judging: Instructions of those who rate the conversations of others.
        words: Headings, buttons and errors of the pages, and their language.
    """

    title: str
    consent: str
    agree: str
    instructions: str
    card: str
    questions: tuple[Question, ...]
    reward: str
    thanks: str
    personas: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    opens: str = "human"
    fewest_turns: int = 2
    most_turns: int = 0
    ranking: str = ""
    attention: AttentionCheck | None = None
    comment: str = ""
    judging: str = (
        "You read conversations that other people had with agents, and rate the agent in each."
    )
    words: Words = ENGLISH

    @classmethod
    def load(cls, path: Path) -> Questionnaire:
        """Reads a file.

        Raises:
            QuestionnaireError: It is not there or cannot be used; names line and field.
        """
        try:
            text = path.read_bytes()
        except OSError as error:
            raise QuestionnaireError(
                f"--questionnaire: {path} cannot be read ({error.strerror}). Give the name of a "
                "YAML file; experiments/human_study/questionnaires has some to begin with."
            ) from None
        return cls.from_yaml(text, str(path))

    @classmethod
    def from_yaml(cls, text: str | bytes, where: str = "questionnaire.yaml") -> Questionnaire:
        """Parses the YAML of a questionnaire; errors as for `load`."""
        try:
            record = parse_yaml(text)
        except YAMLProblem as problem:
            raise QuestionnaireError(f"{where}: {problem}. Repair the file.") from None
        reader = _Reader(where, text)
        reader.check(isinstance(record, Mapping), "", record, "'field: value' lines")
        return reader.questionnaire(record)

    def question(self, name: str) -> Question:
        """The question of this name. Raises `KeyError`."""
        return {question.name: question for question in self.questions}[name]

    def sentences(self, persona: Mapping[str, str]) -> list[str]:
        """The sentences of the card for a persona, one a trait."""
        return [
            self.personas[axis][value]
            for axis, value in persona.items()
            if value in self.personas.get(axis, {})
        ]


def path_for(task: str) -> Path:
    """The questionnaire that comes with a task, or the one for all others."""
    own = FOLDER / f"{task}.yaml"
    return own if re.fullmatch(r"\w+", task) and own.exists() else FOLDER / "default.yaml"


def notices(tasks: Collection[str], more: Collection[str] = ()) -> tuple[str, ...]:
    """Texts that must be told of these tasks' agents, and then what else a study tells.

    Args:
        tasks: Names of tasks or worlds.
        more: Further notices; they can add, and take nothing away.
    """
    required = [text for task, text in NOTICES.items() if task in tasks]
    return tuple(dict.fromkeys([*required, *(each for each in more if each.strip())]))


class _Reader:
    """Makes a questionnaire of parsed YAML; tells the first field that cannot be, with its line."""

    def __init__(self, where: str, text: str | bytes):
        self._where, self._text = where, text

    def questionnaire(self, record: Mapping[str, Any]) -> Questionnaire:
        fields = [field.name for field in dataclasses.fields(Questionnaire)]
        self._known(record, [*fields, "lang"], "")
        values: dict[str, Any] = {}
        for name in ("title", "consent", "agree", "instructions", "card", "thanks"):
            values[name] = self._words(record, name, "")
        for name in ("ranking", "comment", "judging"):
            if record.get(name) not in (None, ""):
                values[name] = self._words(record, name, "")
        values["questions"] = questions = self._questions(record.get("questions"))
        names = [question.name for question in questions]
        values["reward"] = reward = record.get("reward", names[-1])
        self.check(reward in names, "reward", reward, f"a question: {', '.join(names)}")
        values["opens"] = opens = record.get("opens", "human")
        self.check(opens in ("human", "agent"), "opens", opens, "human or agent")
        for name, default, least in (("fewest_turns", 2, 1), ("most_turns", 0, 0)):
            values[name] = self._whole(record, name, "", least, MOST_TURNS, default)
        few, most = values["fewest_turns"], values["most_turns"]
        self.check(
            most == 0 or few <= most, "most_turns", most, f"at least fewest_turns ({few}), or 0"
        )
        values["personas"] = self._personas(record.get("personas"))
        if record.get("attention") is not None:
            values["attention"] = self._attention(record["attention"], questions[0])
        values["words"] = self._words_of_pages(record)
        return Questionnaire(**values)

    def _words_of_pages(self, record: Mapping[str, Any]) -> Words:
        lang, given = record.get("lang", "en"), record.get("words")
        valid = isinstance(lang, str) and bool(_LANGUAGE.fullmatch(lang))
        self.check(valid, "lang", lang, "a language such as en, de or pt-BR (no in quotes)")
        if given is None:
            return Words(lang)
        self.check(isinstance(given, Mapping), "words", given, "name: words, as in words.yaml")
        self._known(given, english(), "words")
        own = {name: self._words(given, name, "words") for name in given}
        for name, text in own.items():
            needed = blanks(english()[name])
            rule = " and ".join(f"{{{blank}}}" for blank in sorted(needed))
            rule = f"words with {rule}, which is filled in" if needed else "words without {}"
            self.check(blanks(text) == needed, f"words.{name}", text, rule)
        return Words(lang, own)

    def _questions(self, given: Any) -> tuple[Question, ...]:
        self.check(
            isinstance(given, list) and 1 <= len(given) <= MOST_QUESTIONS,
            "questions",
            given,
            f"a list of 1 to {MOST_QUESTIONS} questions",
        )
        questions: list[Question] = []
        for index, each in enumerate(given):
            field = f"questions[{index}]"
            self.check(isinstance(each, Mapping), field, each, "name, text, scale and anchors")
            self._known(each, {f.name for f in dataclasses.fields(Question)}, field)
            name = each.get("name")
            valid = isinstance(name, str) and bool(_NAME.fullmatch(name))
            rule = "small letters, digits and _, beginning with a letter"
            self.check(valid, f"{field}.name", name, rule)
            unused = name not in {question.name for question in questions}
            self.check(unused, f"{field}.name", name, "a name that no other question has")
            scale = self._scale(each.get("scale", [1, 5]), f"{field}.scale")
            points = scale[1] - scale[0] + 1
            anchors = each.get("anchors")
            self.check(
                isinstance(anchors, list)
                and len(anchors) in (2, points)
                and all(isinstance(word, str) and word.strip() for word in anchors),
                f"{field}.anchors",
                anchors,
                f"words of the two ends, or of all {points} points (words such as yes in quotes)",
            )
            text = self._words(each, "text", field)
            questions.append(Question(name, text, scale, tuple(anchors)))
        return tuple(questions)

    def _scale(self, given: Any, field: str) -> tuple[int, int]:
        self.check(
            isinstance(given, list)
            and len(given) == 2
            and all(map(is_whole, given))
            and 1 <= given[1] - given[0] < MOST_POINTS
            and abs(given[0]) < 1000,
            field,
            given,
            f"two whole numbers, low and high, with at most {MOST_POINTS} points",
        )
        return given[0], given[1]

    def _personas(self, given: Any) -> dict[str, dict[str, str]]:
        if given is None:
            return {}
        self.check(isinstance(given, Mapping), "personas", given, "trait -> value -> sentence")
        for axis, values in given.items():
            field = f"personas.{axis}"
            self.check(isinstance(values, Mapping) and bool(values), field, values, "values")
            for value in values:
                self._words(values, value, field)
        return {axis: dict(values) for axis, values in given.items()}

    def _attention(self, given: Any, question: Question) -> AttentionCheck:
        self.check(isinstance(given, Mapping), "attention", given, "text, answer and after")
        self._known(given, {f.name for f in dataclasses.fields(AttentionCheck)}, "attention")
        low, high = question.scale
        return AttentionCheck(
            self._words(given, "text", "attention"),
            self._whole(given, "answer", "attention", low, high),
            self._whole(given, "after", "attention", 1, 100, 1),
        )

    def _words(self, record: Mapping[str, Any], name: str, outer: str) -> str:
        value, field = record.get(name), f"{outer}.{name}" if outer else name
        valid = isinstance(value, str) and 0 < len(value.strip()) <= MOST_TEXT
        self.check(valid, field, value, f"text, at most {MOST_TEXT:,} characters")
        return value.strip()

    def _whole(
        self,
        record: Mapping[str, Any],
        name: str,
        outer: str,
        least: int,
        most: int,
        default: Any = None,
    ) -> int:
        value, field = record.get(name, default), f"{outer}.{name}" if outer else name
        valid = is_whole(value) and least <= value <= most
        self.check(valid, field, value, f"a whole number from {least} to {most}")
        return value

    def _known(self, record: Mapping[str, Any], known: Collection[str], outer: str) -> None:
        for name in record:
            field = f"{outer}.{name}" if outer else name
            self.check(name in known, field, name, f"one of the fields {', '.join(known)}")

    def check(self, condition: bool, field: str, value: Any, expected: str) -> None:
        """Raises `QuestionnaireError` with the field's line unless the condition holds."""
        if condition:
            return
        line = _line_of(self._text, field)
        place = f"{self._where}, line {line}" if line else self._where
        require(condition, QuestionnaireError, place, field, shown(value), expected)


def _line_of(text: str | bytes, field: str) -> int | None:
    """Line of a field such as `questions[1].scale`, or of the nearest around it."""
    node = yaml.compose(text, yaml.SafeLoader)
    line = None
    for part in re.findall(r"[^.\[\]]+", field):
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            found = (node.value[int(part)],) * 2
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
