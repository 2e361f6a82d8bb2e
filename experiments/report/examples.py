"""Conversations and training dialogues that the page shows, picked by rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.evaluation.summary import Moment
from experiments.looks import Look, ordered
from experiments.report import wording
from ilql_jax.methods import METHODS
from imagination.dialogue import Dialogue, Turn

MOST_BEHAVIOURS = 8
TURNS_BEFORE = 4  # of a real dialogue that stand before a reply
POPULATIONS_FIRST = ("average", "difficult")

Episode = tuple[str, int]  # population, number
Gap = Callable[[Mapping[str, Dialogue]], float | None]


@dataclasses.dataclass(frozen=True)
class Example:
    """One simulated human with every method; the columns are for the template."""

    why: str
    population: str
    episode: int
    persona: Mapping[str, str]
    columns: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two conversations side by side, under a heading, with the rule that they were picked by."""

    heading: str
    how: str
    example: Example


def pick_examples(
    conversations: Sequence[Dialogue], success_reward: float, looks: Mapping[str, Look]
) -> tuple[str, list[Example]]:
    """Picks episodes to show side by side, by a rule that flatters nobody.

    Returns:
        The rule in words, and the examples.
    """
    episodes = _by_episode(conversations)
    methods = ordered({method for group in episodes.values() for method in group})
    if not episodes:
        return "", []
    focus = wording.main_method(methods) or methods[0]
    rival = _rival(focus, conversations)
    gap, gap_in_words = _gap(focus, rival, looks)
    rule = (
        "Each row is one simulated human, the same for every method. Picked by rule, not by eye: "
        "the first episode of each population, and of all episodes the one with the largest, the "
        f"smallest (most negative) and the median {gap_in_words}. Where several seeds were "
        "trained, the lowest is shown."
    )
    return rule, [
        _example(episode, why, episodes[episode], methods, success_reward, looks)
        for episode, why in _choose(episodes, gap, gap_in_words).items()
    ]


def pick_pair(
    conversations: Sequence[Dialogue],
    dialogues: Sequence[Dialogue],
    success_reward: float,
    looks: Mapping[str, Look],
) -> Pair | None:
    """Picks two conversations for the top: what is imitated, and what the focus makes of it.

    On the left stands an agent that imitates; where none took part, the best behaviour of the
    data; where that is not known either, the best other method.

    Args:
        conversations: Conversations of the evaluation.
        dialogues: Training data.
        success_reward: The task's bar for success.
        looks: Looks of all methods.

    Returns:
        The pair, the focus on the right; None where there is nobody to differ from, or nothing was
        rated.
    """
    episodes = _by_episode(conversations)
    methods = ordered({method for group in episodes.values() for method in group})
    focus = wording.main_method(methods) or next(iter(methods), None)
    if focus is None:
        return None
    imitating = [
        name
        for name, method in METHODS.items()
        if not method.learns_values and name in methods and name != focus
    ]
    if not imitating and (pair := _beside_data(episodes, focus, dialogues, success_reward, looks)):
        return pair
    other = next(iter(imitating), _rival(focus, conversations))
    return other and _widest(episodes, focus, other, success_reward, looks)


def _widest(
    episodes: Mapping[Episode, Mapping[str, Dialogue]],
    focus: str,
    other: str,
    success_reward: float,
    looks: Mapping[str, Look],
) -> Pair | None:
    """The episode in which two methods differ most; None where none was rated with both."""
    gap, gap_in_words = _gap(focus, other, looks)
    gaps = {episode: gap(group) for episode, group in episodes.items()}
    known = {episode: each for episode, each in gaps.items() if each is not None}
    if not known:
        return None
    widest = max(known, key=lambda episode: (abs(known[episode]), -episode[1]))
    why = f"of all episodes the one with the widest {gap_in_words}"
    example = _example(widest, why, episodes[widest], (other, focus), success_reward, looks)
    return Pair("One human, two agents", f"Not typical: {why}.", example)


def _beside_data(
    episodes: Mapping[Episode, Mapping[str, Dialogue]],
    focus: str,
    dialogues: Sequence[Dialogue],
    success_reward: float,
    looks: Mapping[str, Look],
) -> Pair | None:
    """The focus's conversation of median rating, and one like it of the data's best behaviour.

    None where no rated dialogue of the data has a persona like that of the conversation.
    """
    gap, _ = _gap(focus, None, looks)
    ratings = {episode: gap(group) for episode, group in episodes.items()}
    known = {episode: rating for episode, rating in ratings.items() if rating is not None}
    rated = _by_behaviour([dialogue for dialogue in dialogues if dialogue.reward is not None])
    means = {n: float(np.mean([d.total_reward for d in own])) for n, own in rated.items()}
    if not known or not means:
        return None
    best = max(means, key=means.__getitem__)
    episode = sorted(known, key=lambda each: (known[each], each))[len(known) // 2]
    persona = episodes[episode][focus].persona
    alike = [sum(d.persona.get(axis) == persona[axis] for axis in persona) for d in rated[best]]
    if not max(alike):
        return None
    nearest = [d for d, same in zip(rated[best], alike, strict=True) if same == max(alike)]
    partner = sorted(nearest, key=lambda dialogue: dialogue.total_reward)[len(nearest) // 2]
    name, differing = best.replace("_", " "), len(persona) - max(alike)
    human = f"one that differs in {differing} of {len(persona)} axes" if differing else "the same"
    source = f"the best behaviour of the data, {name}" if len(means) > 1 else f"the data ({name})"
    how = (
        f"On the right {looks[focus].title} in the conversation with the median rating, with the "
        f"persona above. On the left {source} (mean reward {wording.number(means[best])}), with "
        f"{human}: of {len(nearest):,} such dialogue{'s' * (len(nearest) > 1)} the one with the "
        "median reward."
    )
    example = _example(episode, "", episodes[episode], (focus,), success_reward, looks)
    of_data = {
        "method": "",
        "title": f"{name}, in the data",
        "rating": rating(partner, success_reward),
        "turns": bubbles(partner),
    }
    example = dataclasses.replace(example, columns=[of_data, *example.columns])
    return Pair("What the data show, and what was learned", how, example)


def _rival(focus: str, conversations: Sequence[Dialogue]) -> str | None:
    """The other method of the highest mean reward; None where there is no other."""
    rewards: dict[str, list[float]] = {}
    for dialogue in conversations:
        if dialogue.reward is not None and dialogue.source["method"] != focus:
            rewards.setdefault(dialogue.source["method"], []).append(dialogue.total_reward)
    means = {method: sum(own) / len(own) for method, own in rewards.items()}
    return max(ordered(means), key=means.__getitem__, default=None)


def _choose(
    episodes: Mapping[Episode, Mapping[str, Dialogue]], gap: Gap, gap_in_words: str
) -> dict[Episode, str]:
    """Chooses the episodes to show and, for each, gives the reasons why."""
    reasons: list[tuple[Episode, str]] = []
    for population in sorted({name for name, _ in episodes}, key=_population_order):
        first = min(episode for episode in episodes if episode[0] == population)
        reasons.append((first, f"first of the {population} population"))
    gaps = {episode: gap(group) for episode, group in episodes.items()}
    ranked = sorted((g, episode) for episode, g in gaps.items() if g is not None)
    if ranked:
        reasons.append((ranked[-1][1], f"largest {gap_in_words}"))
        reasons.append((ranked[0][1], f"smallest {gap_in_words}"))
        reasons.append((ranked[len(ranked) // 2][1], f"median {gap_in_words}"))
    chosen: dict[Episode, str] = {}
    for episode, why in reasons:
        chosen[episode] = f"{chosen[episode]}; {why}" if episode in chosen else why
    return chosen


def _population_order(name: str) -> tuple[int, str]:
    known = POPULATIONS_FIRST
    return known.index(name) if name in known else len(known), name


def _by_episode(conversations: Sequence[Dialogue]) -> dict[Episode, dict[str, Dialogue]]:
    """(population, episode) -> method -> its conversation, of the lowest seed."""
    episodes: dict[Episode, dict[str, Dialogue]] = {}
    for dialogue in sorted(conversations, key=lambda d: d.source["seed"]):
        source = dialogue.source
        group = episodes.setdefault((source["population"], source["episode"]), {})
        group.setdefault(source["method"], dialogue)
    return episodes


def _gap(focus: str, rival: str | None, looks: Mapping[str, Look]) -> tuple[Gap, str]:
    """The number that episodes are ranked by, as a function and in words."""

    def gap(group: Mapping[str, Dialogue]) -> float | None:
        compared = [group.get(method) for method in (focus, rival) if method is not None]
        if any(dialogue is None or dialogue.reward is None for dialogue in compared):
            return None
        rewards = [dialogue.total_reward for dialogue in compared]
        return rewards[0] - sum(rewards[1:])

    title = looks[focus].title
    if rival is None:
        return gap, f"rating of {title}"
    return gap, f"difference in rating, {title} minus {looks[rival].title}"


def _example(
    episode: Episode,
    why: str,
    group: Mapping[str, Dialogue],
    methods: Sequence[str],
    success_reward: float,
    looks: Mapping[str, Look],
) -> Example:
    shown = [method for method in methods if method in group]
    columns = [
        {
            "method": method,
            "title": looks[method].title,
            "rating": rating(group[method], success_reward),
            "turns": bubbles(group[method]),
        }
        for method in shown
    ]
    return Example(why, *episode, group[shown[0]].persona, columns)


def rating(dialogue: Dialogue, success_reward: float | None) -> dict[str, Any]:
    """The reward of a conversation as text, and whether it was a success where that is known."""
    success = None
    if dialogue.reward is not None and success_reward is not None:
        success = dialogue.total_reward >= success_reward
    text = "not rated" if dialogue.reward is None else wording.number(dialogue.total_reward)
    return {"text": text, "success": success}


def bubbles(dialogue: Dialogue) -> list[dict[str, Any]]:
    """The turns for the page: text, values, candidates, whether the human could follow."""
    shown = []
    for index, turn in enumerate(dialogue.turns):
        notes = turn.annotations
        following = dialogue.turns[index + 1] if index + 1 < len(dialogue.turns) else None
        answer = following.annotations if following and following.speaker == "human" else {}
        shown.append(
            {
                "speaker": turn.speaker,
                "text": turn.text,
                "q": wording.number(notes["q"]) if notes.get("q") is not None else None,
                "v": wording.number(notes["v"]) if notes.get("v") is not None else None,
                "candidates": [
                    {"text": each["text"], "q": wording.number(each.get("q"))}
                    for each in notes.get("candidates", ())
                ],
                "understood_as": answer.get("understood_as"),
                "not_understood": turn.speaker == "agent"
                and "understood_as" in answer
                and answer["understood_as"] is None,
            }
        )
    return shown


def replies(
    moments: Sequence[Moment], dialogues: Sequence[Dialogue], looks: Mapping[str, Look]
) -> list[dict[str, Any]]:
    """The methods' replies beside what was said; dialogues that are not there are left out."""
    by_id = {dialogue.id: dialogue for dialogue in dialogues}
    shown = []
    for moment in moments:
        dialogue = by_id.get(moment.dialogue)
        if dialogue is None or moment.turn >= len(dialogue.turns):
            continue
        turns = bubbles(dialogue)
        said = {
            "method": "",
            "title": "as it was said",
            "decoding": "",
            "turns": [turns[moment.turn]],
        }
        columns = [said]
        for method in ordered(moment.replies):
            reply = moment.replies[method]
            notes = {"q": reply.q, "v": reply.v}
            spoken = Dialogue("", "", (Turn("agent", reply.text, annotations=notes),))
            columns.append(
                {
                    "method": method,
                    "title": looks[method].title,
                    "decoding": reply.decoding,
                    "turns": bubbles(spoken),
                }
            )
        before = turns[: moment.turn][-TURNS_BEFORE:]
        shown.append(
            {
                "dialogue": dialogue.id,
                "left_out": moment.turn - len(before),
                "before": before,
                "rating": rating(dialogue, None),
                "columns": columns,
            }
        )
    return shown


def behaviours(dialogues: Sequence[Dialogue]) -> list[dict[str, Any]]:
    """The training data by behaviour: how much, how good, and its first dialogue."""
    largest = sorted(_by_behaviour(dialogues).items(), key=lambda item: (-len(item[1]), item[0]))
    return [_behaviour(name, group, len(dialogues)) for name, group in largest[:MOST_BEHAVIOURS]]


def _by_behaviour(dialogues: Sequence[Dialogue]) -> dict[str, list[Dialogue]]:
    """Name of a behaviour -> its dialogues; where that is not noted, by where they come from."""
    groups: dict[str, list[Dialogue]] = {}
    for dialogue in dialogues:
        source = dialogue.source
        name = source.get("behaviour") or source.get("kind") or "unknown"
        groups.setdefault(str(name), []).append(dialogue)
    return groups


def _behaviour(name: str, group: Sequence[Dialogue], total: int) -> dict[str, Any]:
    rewards = [d.total_reward for d in group if d.reward is not None]
    return {
        "name": name.replace("_", " "),
        "count": len(group),
        "share": wording.percent(len(group) / total),
        "mean": wording.number(sum(rewards) / len(rewards) if rewards else None),
        "turns": wording.number(sum(len(d.agent_turns) for d in group) / len(group), 1),
        "persona": group[0].persona,
        "rating": rating(group[0], None),
        "dialogue": bubbles(group[0]),
    }
