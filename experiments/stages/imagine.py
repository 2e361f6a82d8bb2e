"""Stage imagine: the dialogues of the run, in `dialogues.jsonl`, and their card.

From an embedded world they are played between its humans and its behaviours; an LLM imagines them
(`llm_imagination.py`); from a corpus they are read. They depend on the settings alone: same seed,
same dialogues.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from experiments import config as settings
from experiments import tasks
from experiments.files import write_atomically
from experiments.run_folder import RunFolder
from experiments.terminal import progress_bars
from imagination import corpora
from imagination.dialogue import Dialogue, json_line, read_dialogues, write_dialogues
from imagination.simulation import (
    BehaviourAgent,
    SimulatedHuman,
    World,
    load_world,
    sample_conversations,
)
from imagination.speakers import Conversation, converse

CHUNK = 500  # dialogues played together; a killed run loses at most these


def run(config: ConfigDict, folder: RunFolder, console: Console) -> None:
    """Writes the dialogues and their card, where they are not there yet."""
    if not folder.dialogues.exists():
        if config.data.source != "world":
            dialogues, facts = _read_corpus(config)
            console.print("\n".join(facts), markup=False, highlight=False)
            origin = "".join(["\n## Where it comes from\n\n", *(f"- {each}\n" for each in facts)])
            write_atomically(folder.task, tasks.corpus_task(config).to_yaml())
            write_atomically(folder.dataset_card, dataset_card(dialogues) + origin)
            write_dialogues(folder.dialogues, dialogues)
        elif config.imagination.engine == "world":
            _play(config, folder.dialogues, console)
        else:
            from experiments import llm_imagination  # loads the LLM client

            dialogues, sections = llm_imagination.run(config, folder, console)
            # The card first: what it took cannot be told from the dialogues later.
            write_atomically(folder.dataset_card, dataset_card(dialogues) + "\n" + sections)
            write_dialogues(folder.dialogues, dialogues)
    if not folder.dataset_card.exists():
        write_atomically(folder.dataset_card, dataset_card(read_dialogues(folder.dialogues)))


def _play(config: ConfigDict, path: Path, console: Console) -> None:
    """Plays the dialogues chunk by chunk; each depends on its own seed alone."""
    world = load_world(config.task.world)
    conversations = sample_conversations(
        world, "average", config.imagination.dialogues, config.seed, prefix=world.name
    )
    partial = path.with_name(path.name + ".partial")
    done = _keep_whole_chunks(partial)
    with progress_bars(console) as bars, partial.open("a", encoding="utf-8") as file:
        bar = bars.add_task("imagine", total=len(conversations), completed=done, note="")
        for start in range(done, len(conversations), CHUNK):
            chunk = conversations[start : start + CHUNK]
            file.write("".join(map(json_line, _play_chunk(world, chunk))))
            file.flush()
            bars.advance(bar, len(chunk))
    partial.replace(path)


def _play_chunk(world: World, conversations: list[Conversation]) -> list[Dialogue]:
    agent = BehaviourAgent(world)
    dialogues = converse(agent, SimulatedHuman(world), conversations, world.task)
    return [
        dataclasses.replace(
            dialogue,
            # Only words reach the learner: which act an utterance was stays with the world.
            turns=tuple(dataclasses.replace(turn, annotations={}) for turn in dialogue.turns),
            source={"kind": "simulated", "behaviour": agent.behaviour_of(conversation)},
        )
        for dialogue, conversation in zip(dialogues, conversations, strict=True)
    ]


def _keep_whole_chunks(partial: Path) -> int:
    """Cuts an unfinished file back to whole chunks and returns how many dialogues it holds."""
    if not partial.exists():
        return 0
    lines = partial.read_bytes().split(b"\n")[:-1]  # what follows the last newline is cut off
    keep = len(lines) - len(lines) % CHUNK
    os.truncate(partial, sum(len(line) + 1 for line in lines[:keep]))
    return keep


def _read_corpus(config: ConfigDict) -> tuple[list[Dialogue], list[str]]:
    """The corpus, each dialogue marked with its part (train or test), and what to know of it."""
    corpus = corpora.CORPORA[config.data.source]
    reading = corpus.read(Path(config.data.path), settings.read_options(config))
    dialogues = reading.dialogues
    parts = corpora.split_dialogues(dialogues, {"train": 0.8, "test": 0.2}, config.seed)
    part_of = {dialogue.id: part for part, group in parts.items() for dialogue in group}
    marked = [dataclasses.replace(d, source={**d.source, "part": part_of[d.id]}) for d in dialogues]
    origin = f"{corpus.title} ({corpus.homepage}). Licence: {corpus.licence}."
    return marked, [origin, *reading.notes]


def dataset_card(dialogues: list[Dialogue]) -> str:
    """What is in the dataset, as Markdown."""
    rewards = np.array([d.total_reward for d in dialogues])
    turns = np.array([len(d.turns) for d in dialogues])
    words = np.array([len(t.text.split()) for d in dialogues for t in d.turns])
    utterances = Counter(t.text for d in dialogues for t in d.agent_turns)
    lines = [
        f"# {dialogues[0].task}: {len(dialogues):,} dialogues",
        "",
        "| | mean | 10 % | median | 90 % |",
        "| --- | --- | --- | --- | --- |",
        _quantiles("reward", rewards),
        _quantiles("turns", turns),
        _quantiles("words a turn", words),
        "",
        f"Different agent utterances: {len(utterances):,} of {sum(utterances.values()):,}.",
        "",
    ]
    behaviours = sorted({d.source["behaviour"] for d in dialogues if d.source.get("behaviour")})
    if behaviours:
        lines += ["## By behaviour", "", "| behaviour | dialogues | mean reward |", "|---|---|---|"]
        for name in behaviours:
            own = rewards[[d.source.get("behaviour") == name for d in dialogues]]
            lines.append(f"| {name} | {len(own):,} | {own.mean():.3f} |")
        lines.append("")
    axes = list(dialogues[0].persona)
    if axes:
        lines += ["## By persona", "", "| axis | value | dialogues | mean reward |"]
        lines.append("| --- | --- | --- | --- |")
    for axis in axes:
        for value in sorted({d.persona.get(axis, "unknown") for d in dialogues}):
            own = rewards[[d.persona.get(axis, "unknown") == value for d in dialogues]]
            lines.append(f"| {axis} | {value} | {len(own):,} | {own.mean():.3f} |")
    return "\n".join(lines) + "\n"


def _quantiles(name: str, values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    return f"| {name} | {values.mean():.3g} | {low:.3g} | {middle:.3g} | {high:.3g} |"
