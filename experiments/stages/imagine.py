"""Stage imagine: the dialogues of the run, in `dialogues.jsonl`, and their card.

From an embedded world they are played between its humans and its behaviours; an LLM imagines them
(`llm_imagination.py`); from a corpus they are read. They depend on the settings alone: same seed,
same dialogues.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from experiments import config as settings
from experiments import tasks
from experiments.files import write_atomically
from experiments.run_folder import RunFolder
from experiments.terminal import progress_bars
from imagination import corpora
from imagination.dataset_card import dataset_card
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
            task = tasks.corpus_task(config)
            write_atomically(folder.task, task.to_yaml())
            write_atomically(folder.dataset_card, dataset_card(dialogues, task, origin=facts))
            write_dialogues(folder.dialogues, dialogues)
        elif config.imagination.engine == "world":
            _play(config, folder.dialogues, console)
        else:
            from experiments import llm_imagination  # loads the LLM client

            dialogues, card = llm_imagination.run(config, folder, console)
            # The card first: calls and cost cannot be told from the dialogues later.
            write_atomically(folder.dataset_card, card)
            write_dialogues(folder.dialogues, dialogues)
    if not folder.dataset_card.exists():
        dialogues = read_dialogues(folder.dialogues)
        card = dataset_card(dialogues, tasks.load_task(config, folder), seed=config.seed)
        write_atomically(folder.dataset_card, card)


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
