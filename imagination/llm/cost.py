"""Forecasts of calls, tokens and dollars, without a single call.

The step in question really runs, with a `StandInLLM` that answers with placeholders of ordinary
size and records the requests. So the forecast counts the requests that would be sent.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from imagination.llm.config import LLMConfig
from imagination.llm.requests import Answer, Failure, Request, Usage
from imagination.llm.structured import schema_in_words

SAMPLE = 16  # dialogues that stand for all
DOUBT = 2.0  # a dialogue may cost so many times what is forecast without any answer
SHARE_AT_ONCE = (
    0.75  # share of the money for dialogues that begin at once, at the mean price of others
)
CHARACTERS_PER_TOKEN = 4  # of English, roughly


@dataclasses.dataclass(frozen=True)
class Call:
    """A request, and the characters of its answer."""

    request: Request
    answer_size: int

    @property
    def input_tokens(self) -> int:
        words = len(self.request.system) + sum(len(text) for _, text in self.request.messages)
        return _tokens(words + len(schema_in_words(self.request.schema)))

    @property
    def output_tokens(self) -> int:
        return _tokens(self.answer_size)


class StandInLLM:
    """Answers with placeholders and records the requests.

    Args:
        failing: Answers that can say that something fails (`failing()` of the schema) do so.

    Attributes:
        calls: The requests so far.
    """

    def __init__(self, failing: bool = False):
        self.failing = failing
        self.calls: list[Call] = []

    async def ask(self, request: Request) -> Answer:
        return self._answer(request)

    async def ask_all(self, requests: Sequence[Request]) -> list[Answer]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer:
        parsed: Any = request.schema.placeholder()
        if self.failing and hasattr(parsed, "failing"):
            parsed = parsed.failing()
        text = parsed.model_dump_json()
        self.calls.append(Call(request, len(text)))
        return Answer(text=text, parsed=parsed, model="", usage=Usage(), from_cache=False)


@dataclasses.dataclass(frozen=True)
class StepForecast:
    """Forecast of one step; dollars, without the discount of prompt caching.

    Attributes:
        step: Its name, as the meter counts it.
        calls: Calls in the usual course.
        calls_at_most: Calls in the worst course.
        input_tokens, output_tokens: Estimates for `calls`.
        cost: Dollars for `calls`.
        cost_at_most: Dollars for `calls_at_most`.
        example: One request in full.
        part: Part of the run, where several are forecast together.
    """

    step: str
    calls: int
    calls_at_most: int
    input_tokens: int
    output_tokens: int
    cost: float
    cost_at_most: float
    example: Request
    part: str = ""


@dataclasses.dataclass(frozen=True)
class Forecast:
    """All steps, and the assumptions behind the numbers."""

    steps: tuple[StepForecast, ...]
    notes: tuple[str, ...]

    @property
    def calls(self) -> int:
        return sum(step.calls for step in self.steps)

    @property
    def cost(self) -> float:
        return sum(step.cost for step in self.steps)

    @property
    def cost_at_most(self) -> float:
        return sum(step.cost_at_most for step in self.steps)

    def to_markdown(self, prompts: bool = True) -> str:
        """The steps as a table, and with `prompts` an example of each prompt.

        Several parts of a run are summed up by themselves, too.
        """
        parts: dict[str, list[StepForecast]] = {}
        for step in self.steps:
            parts.setdefault(step.part, []).append(step)
        lines = [
            "| step | calls | at most | tokens in | tokens out | $ | $ at most |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for part, steps in parts.items():
            lines += [_row(step.step, [step]) for step in steps]
            if part:
                lines.append(_row(f"**{part}**", steps))
        lines += [_row("all", self.steps), "", *(f"- {note}" for note in self.notes)]
        examples: dict[str, StepForecast] = {}
        for step in self.steps if prompts else ():
            examples.setdefault(step.example.prompt_version, step)
        for version, step in examples.items():
            lines += ["", f"## {step.step} ({version})", "", _readable(step.example)]
        return "\n".join(lines) + "\n"


def joined(parts: Mapping[str, Forecast]) -> Forecast:
    """The forecast of a run from those of its parts, by their names."""
    return Forecast(
        tuple(
            dataclasses.replace(step, part=part)
            for part, each in parts.items()
            for step in each.steps
        ),
        tuple(dict.fromkeys(note for each in parts.values() for note in each.notes)),
    )


def _row(name: str, steps: Sequence[StepForecast]) -> str:
    """A line of the table: the sums over some steps."""

    def total(field: str) -> float:
        return sum(getattr(step, field) for step in steps)

    numbers = ("calls", "calls_at_most", "input_tokens", "output_tokens")
    cells = [f"{total(field):,}" for field in numbers]
    cells += [f"{total(field):.2f}" for field in ("cost", "cost_at_most")]
    return f"| {' | '.join([name, *cells])} |"


class LearnedForecast:
    """A forecast that learns from the answers as they come.

    At first the calls are those forecast beforehand, each at the mean price of those of its step
    so far. Once the dialogues of the sample are finished, what they took counts for the others.
    The sample is fixed at the start: those that happen to be finished first are the short ones.

    Args:
        beforehand: Calls and prices without any answer.
        dialogues: Ids of all dialogues, in their order: the labels of their requests.
        sample: Number of the first of them from which is learned.

    Attributes:
        answers: Answers so far.
        spent: Dollars of these, whenever they were paid for.
        first: The cost as it was forecast when the sample was finished; None before.
    """

    def __init__(self, beforehand: Forecast, dialogues: Sequence[str], sample: int = SAMPLE):
        self._plan = beforehand
        self._beforehand = {step.step: step for step in beforehand.steps}
        self._sample = frozenset(dialogues[:sample])
        self._waiting = set(self._sample)
        self._factor = len(dialogues) / len(self._sample)
        self._seen: dict[str, _Tally] = collections.defaultdict(_Tally)
        self._sampled: dict[str, _Tally] = collections.defaultdict(_Tally)
        self.answers, self.spent = 0, 0.0
        self.first: float | None = None

    @property
    def calls(self) -> int:
        """Calls in all, as far as is known now."""
        return round(sum(calls for calls, _ in self._estimates()))

    @property
    def cost(self) -> float:
        """Dollars in all, as far as is known now."""
        return sum(cost for _, cost in self._estimates())

    def forecast(self) -> Forecast:
        """The forecast beforehand, with what was learned in the place of what was estimated."""
        return dataclasses.replace(
            self._plan, steps=tuple(map(self._learned, self._beforehand.values()))
        )

    def saw(self, request: Request, answer: Answer | Failure) -> None:
        """Takes an answer into account."""
        self.answers, self.spent = self.answers + 1, self.spent + answer.usage.cost
        self._seen[request.step].add(answer.usage)
        if request.label in self._sample:
            self._sampled[request.step].add(answer.usage)

    def finished(self, dialogue: str) -> None:
        """Takes into account that a dialogue asks no more."""
        if dialogue in self._waiting:
            self._waiting.remove(dialogue)
            self.first = None if self._waiting else self.cost

    def line(self) -> str:
        """The forecast beside what was spent, in one sentence for people; "" before the sample."""
        if self.first is None or not self.spent:
            return ""
        return (
            f"Cost: ${self.spent:,.4f}. Forecast when the first {len(self._sample)} dialogues were "
            f"finished: ${self.first:,.4f}."
        )

    def _estimates(self) -> list[tuple[float, float]]:
        return [self._estimate(step) for step in {**self._beforehand, **self._seen}]

    def _estimate(self, step: str) -> tuple[float, float]:
        """Calls of a step in all, and their dollars."""
        before, (calls, tally) = self._beforehand.get(step), self._calls(step)
        if tally.calls:
            return calls, tally.mean("cost") * calls
        return calls, before.cost if before else 0.0

    def _calls(self, step: str) -> tuple[float, _Tally]:
        """Calls of a step in all, and the answers whose mean is theirs."""
        before, seen, sampled = self._beforehand.get(step), self._seen[step], self._sampled[step]
        if not self._waiting and sampled.calls:
            # Personas and the like, which are no dialogue's, are in `seen` alone.
            return max(sampled.calls * self._factor, seen.calls), sampled
        return max(before.calls if before else 0, seen.calls), seen

    def _learned(self, before: StepForecast) -> StepForecast:
        calls, tally = self._calls(before.step)
        if not tally.calls:
            return before
        most = max(calls, before.calls_at_most)
        read = ("input_tokens", "cache_read_tokens", "cache_write_tokens")
        return dataclasses.replace(
            before,
            calls=round(calls),
            calls_at_most=round(most),
            input_tokens=round(sum(map(tally.mean, read)) * calls),
            output_tokens=round(tally.mean("output_tokens") * calls),
            cost=tally.mean("cost") * calls,
            cost_at_most=tally.mean("cost") * most,
        )


class Affordable:
    """Number of dialogues that may be under way: as many as can be paid for to their end.

    Where they go on side by side and the money is out, hardly one of them is finished. So the first
    few are finished before it is known what one costs and others begin.

    Args:
        llm: Has the limit on cost.
        number: Dialogues in all.
        most: Those under way at the same time, however much money there is.
        price: Dollars of one dialogue, as forecast beforehand; 0 = not known.
    """

    def __init__(self, llm: object, number: int, most: int, price: float = 0.0):
        self._llm, self._number, self._most, self._price = llm, number, most, price
        self._ended = _Tally()

    def ended(self, cost: float) -> None:
        """Takes into account what a dialogue has cost that asks no more."""
        self._ended.add(Usage(cost=cost))

    def __call__(self) -> int:
        left = getattr(self._llm, "money_left", math.inf)
        if self._ended.calls >= min(SAMPLE, self._number):
            return _at_most(self._most, left, self._ended.mean("cost") / SHARE_AT_ONCE)
        number = _at_most(self._number, left, self._price * DOUBT)
        is_enough = left == math.inf or (self._price and number == self._number)
        return min(self._most, number if is_enough else min(number, SAMPLE))


def _at_most(most: int, money: float, price: float) -> int:
    """Number of things of a price that there is money for."""
    return most if price <= 0 or price * most <= money else int(money / price)


@dataclasses.dataclass
class _Tally:
    """Number of answers, and what they took."""

    calls: int = 0
    usage: Usage = dataclasses.field(default_factory=Usage)

    def add(self, usage: Usage) -> None:
        self.calls += 1
        self.usage += usage

    def mean(self, field: str) -> float:
        return getattr(self.usage, field) / self.calls


def forecast(
    once: Sequence[Call],
    usual: Sequence[Call],
    worst: Sequence[Call],
    factor: float,
    llm: LLMConfig,
    notes: Sequence[str],
    own: Mapping[str, LLMConfig | None] | None = None,
) -> Forecast:
    """Adds up calls by step, in the order in which the steps first occur.

    Args:
        once: Calls that are counted as they are.
        usual: Calls of a sample of the dialogues in the usual course; counted `factor` times.
        worst: Calls of the same sample in the worst course.
        factor: Dialogues in all for each one of the sample.
        llm: Prices, and whether batches are used.
        notes: Further assumptions.
        own: Step -> its own prices, where it has a model of its own.
    """
    examples: dict[str, Request] = {}
    for call in [*once, *worst]:
        examples.setdefault(call.request.step, call.request)
    steps = []
    for step, example in examples.items():
        calls, tokens_in, tokens_out = _total(step, once, usual, factor)
        most, most_in, most_out = _total(step, once, worst, factor)
        model = (own or {}).get(step) or llm
        cost = _cost(model, tokens_in, tokens_out)
        # Placeholders may be shorter than the words of an original that they take the place of.
        cost_at_most = max(cost, _cost(model, most_in, most_out))
        steps.append(
            StepForecast(step, calls, most, tokens_in, tokens_out, cost, cost_at_most, example)
        )
    sizes = (
        f"Tokens are estimated at {CHARACTERS_PER_TOKEN} characters each, answers at an ordinary "
        "size; cached input would be cheaper."
    )
    models = [(own or {}).get(step) or llm for step in examples]
    return Forecast(tuple(steps), (sizes, *notes, *_price_notes(models)))


def _total(
    step: str, once: Sequence[Call], sample: Sequence[Call], factor: float
) -> tuple[int, int, int]:
    """Calls, input tokens and output tokens of a step."""

    def total(calls: Sequence[Call]) -> tuple[int, int, int]:
        own = [call for call in calls if call.request.step == step]
        return (
            len(own),
            sum(call.input_tokens for call in own),
            sum(call.output_tokens for call in own),
        )

    pairs = zip(total(once), total(sample), strict=True)
    return tuple(fixed + round(sampled * factor) for fixed, sampled in pairs)


def _price_notes(models: Sequence[LLMConfig]) -> list[str]:
    """Says whose prices are not known, or of when the prices are; of models that are asked."""
    unpriced = dict.fromkeys(each.model for each in models if not each.is_priced)
    if unpriced:
        names = ", ".join(unpriced)
        return [f"No prices are configured for {names}: the cost is not known, not zero."]
    dates = dict.fromkeys(each.price_date for each in models if each.price_date)
    return [f"Prices as of {', '.join(dates)}."] if dates else []


def _cost(llm: LLMConfig, tokens_in: int, tokens_out: int) -> float:
    return llm.cost({"input_tokens": tokens_in, "output_tokens": tokens_out}, llm.batch)


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def _readable(request: Request) -> str:
    parts = [("system", request.system), *request.messages]
    return "\n\n".join(f"**{role}**\n\n{text}" for role, text in parts)
