"""Step personas: combinations of hidden traits, balanced, and a profile of each in words."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pydantic

from imagination.llm.requests import Request
from imagination.llm.schemas import (
    Bounded,
    Paragraph,
    Sentence,
    first_of_each,
    numbers_known,
    specialize,
)
from imagination.llm.session import LLM, NoAnswer, Session, most_at_once, run_concurrently
from imagination.persona_sampling import persona_key
from imagination.prompts import load_prompt
from imagination.task import Task

STEP = "engine/personas"
Persona = Mapping[str, str]
MOST_SITUATIONS = 5  # of one profile, as the schema says; 3 are asked for
_MOST_LISTED = 1_000_000  # combinations that are listed and shuffled


class Profile(pydantic.BaseModel):
    """Behaviour of the human of one persona."""

    number: int
    profile: Paragraph
    reveals: Sentence
    situations: list[Sentence] = pydantic.Field(
        json_schema_extra={"minItems": 1, "maxItems": MOST_SITUATIONS}
    )
    difficult: bool


class Profiles(Bounded):
    """The answer to one call: as many profiles as combinations were given."""

    count: ClassVar[int] = 1

    profiles: list[Profile]

    @classmethod
    def items(cls) -> dict[str, list[dict[str, Any]]]:
        return {"profiles": numbers_known(cls.count)}

    @pydantic.model_validator(mode="after")
    def _one_of_each(self) -> Profiles:
        self.profiles = first_of_each(self.profiles, self.count, "profiles numbered")
        for each in self.profiles:
            if not each.profile.strip() or not each.situations or not all(each.situations):
                raise ValueError(f"profile {each.number} is without a profile or situations")
        return self

    @classmethod
    def placeholder(cls) -> Profiles:
        """An answer of ordinary size, for forecasts."""
        profile = "You talk and react like a person with these traits would. " * 6
        reveals = "You let it show in how you react. " * 3
        situations = ["You came for a reason of your own."] * 3
        each = {"profile": profile, "reveals": reveals, "situations": situations}
        numbers = range(1, cls.count + 1)
        return cls(profiles=[Profile(number=i, difficult=False, **each) for i in numbers])


def draw_personas(axes: Mapping[str, Sequence[str]], number: int, seed: int) -> list[Persona]:
    """Draws personas evenly: the first n are as balanced as any n can be.

    Every combination comes equally often, or once more where `number` is no multiple of their
    count; among those that come once more, every value of every axis does equally often, give
    or take one. More personas from the same seed begin with the same ones.

    Walking diagonally (one step on every axis at a time) visits the values of each axis in turn,
    and comes back after the least common multiple of the axes' sizes; so every stretch of such
    a walk is balanced, and the walks from different starts cover all combinations.
    """
    dice = random.Random(f"{seed}/personas")
    names = list(axes)
    values = [dice.sample(list(axes[name]), len(axes[name])) for name in names]
    sizes = [len(each) for each in values]
    length = math.lcm(*sizes)
    seen: set[tuple[int, ...]] = set()
    order: list[tuple[int, ...]] = []
    for start in _starts(sizes, number, dice):
        if start in seen:
            continue
        walk = [
            tuple((i + step) % k for i, k in zip(start, sizes, strict=True))
            for step in range(min(length, number - len(order)))
        ]
        seen.update(walk)
        order += walk
        if len(order) >= number:
            break
    combinations = [
        {name: values[axis][i] for axis, (name, i) in enumerate(zip(names, point, strict=True))}
        for point in order
    ]
    return [combinations[i % len(combinations)] for i in range(number)]


def prior_probability(axes: Mapping[str, Sequence[str]]) -> float:
    """Probability of each combination of traits: they come evenly."""
    return 1 / math.prod(map(len, axes.values()))


def _starts(sizes: Sequence[int], number: int, dice: random.Random) -> Iterator[tuple[int, ...]]:
    """Combinations in random order, each the start of a walk."""
    if math.prod(sizes) > max(_MOST_LISTED, 2 * number):  # too many to list, and not all are needed
        while True:
            yield tuple(map(dice.randrange, sizes))
    points = list(itertools.product(*map(range, sizes)))
    dice.shuffle(points)
    yield from points


def draw_evenly(values: Sequence[Any], number: int, seed: str) -> list[Any]:
    """Draws values in random order, each equally often in any stretch from the beginning."""
    blocks = range(-(-number // len(values)))
    drawn = [random.Random(f"{seed}/{block}").sample(list(values), len(values)) for block in blocks]
    return [value for block in drawn for value in block][:number]


def balance(
    personas: Sequence[Persona], is_difficult: Mapping[Any, bool], difficult_share: float
) -> list[Persona]:
    """Draws again from these: difficult personas with their share, within each kind evenly.

    Persona i is one of the first i that were drawn before, so that more of them begin with the
    same ones: of the kind that lags behind its share, the one that came least often.

    Args:
        personas: Personas in the order drawn, with repetitions.
        is_difficult: Tells the difficult ones, by `persona_key`.
        difficult_share: Their share.
    """
    # By kind: how often each persona that was met came, and its place in the order.
    waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    met, counts, drawn = set(), Counter(), []
    for index, persona in enumerate(personas):
        key = persona_key(persona)
        if key not in met:
            met.add(key)
            heapq.heappush(waiting[is_difficult[key]], (0, index))
        # What the difficult ones lag behind and the others do sum to 1.
        kind = difficult_share * (index + 1) - counts[True] > 0.5
        kind = kind if waiting[kind] else not kind
        times, place = heapq.heappop(waiting[kind])
        heapq.heappush(waiting[kind], (times + 1, place))
        counts[kind] += 1
        drawn.append(personas[place])
    return drawn


def profile_request(task: Task, personas: Sequence[Persona], label: str) -> Request:
    """Asks for the profiles of these personas, in one call."""
    schema = specialize(Profiles, count=len(personas))
    values = {"task": task, "personas": personas}
    return load_prompt(STEP).request(schema, values, label=label)


async def write_profiles(
    llm: LLM,
    task: Task,
    personas: Sequence[Persona],
    personas_per_call: int,
    conversations: int,
    first: int = 0,
) -> tuple[dict[Any, Profile | NoAnswer], Session]:
    """Asks for a profile of each distinct persona.

    Args:
        llm: The LLM client.
        task: The task.
        personas: All personas, with repetitions.
        personas_per_call: Profiles written in one call.
        conversations: Calls under way at the same time.
        first: Only the calls that the first so many personas need; 0 = all.

    Returns:
        By `persona_key` the profile, or the reason where none could be had; and the session, which
        knows the models that wrote them.
    """
    distinct = list({persona_key(p): p for p in personas}.values())
    needed = len({persona_key(p) for p in personas[: first or None]})
    starts = range(0, needed, personas_per_call)
    groups = [distinct[start : start + personas_per_call] for start in starts]
    session = Session(llm)

    async def describe(group: Sequence[Persona], first: int) -> dict:
        label = f"personas {first + 1} to {first + len(group)}"
        try:
            answer = await session.ask(profile_request(task, group, label))
        except NoAnswer as error:
            if len(group) == 1:
                return {persona_key(group[0]): error}
            # One that is refused must not take the others of its call with it.
            alone = [await describe([each], first + i) for i, each in enumerate(group)]
            return {key: value for profiles in alone for key, value in profiles.items()}
        by_number = {profile.number: profile for profile in answer.profiles}
        return {persona_key(p): by_number[i] for i, p in enumerate(group, start=1)}

    jobs = [
        functools.partial(describe, group, start)
        for start, group in zip(starts, groups, strict=True)
    ]
    profiles: dict[Any, Profile | NoAnswer] = {}
    for described in await run_concurrently(jobs, most_at_once(llm, conversations)):
        profiles.update(described)
    return profiles, session
