"""Stage imagine: the dialogues of the run, in `dialogues.jsonl`, and their card.

From an embedded world they are played between its humans and its behaviours; an LLM imagines them
(`llm_imagination.py`); from a corpus, or from a user's own files (`own_dialogues.py`), they are
read. They depend on the settings alone: same seed, same dialogues.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from experiments import own_dialogues, tasks
from experiments.build import Experiment, Imagination, errors_of
from experiments.config import DataConfig
from experiments.files import write_atomically, written_in_chunks
from experiments.imagination_config import PlantedFlawsConfig
from experiments.run_folder import RunFolder
from experiments.training_data import check_words
from ilql_jax.progress import ProgressBars
from imagination import corpora
from imagination.dataset_card import dataset_card
from imagination.dialogue import Dialogue, json_line, read_dialogues, write_dialogues
from imagination.hindsight.world import WorldHindsight
from imagination.simulation import (
    BehaviourAgent,
    SimulatedHuman,
    World,
    about_personas,
    as_data,
    imagine_conversations,
    load_world,
    planted_flaws,
)
from imagination.speakers import Conversation, converse

CHUNK = 500  # dialogues played together; a killed run loses at most these


def run(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Writes the dialogues and their card, where they are not there yet."""
    if not folder.dialogues.exists():
        if experiment.data.source != "world":
            _read(experiment, folder, console)
        elif not experiment.imagines_with_llm:
            world = load_world(experiment.task.world)
            _play(world, experiment.imagination, experiment.seed, folder.dialogues, console)
        else:
            from experiments import llm_imagination  # loads the LLM client

            imagined, card = llm_imagination.run(experiment, folder, console)
            # The card first: calls and cost cannot be told from the dialogues later.
            write_atomically(folder.dataset_card, card)
            if imagined.rejected:
                write_dialogues(folder.rejected_dialogues, imagined.rejected)
            else:
                folder.rejected_dialogues.unlink(missing_ok=True)
            write_dialogues(folder.dialogues, imagined.dialogues)
    if not folder.dataset_card.exists():
        dialogues = read_dialogues(folder.dialogues)
        rejected = folder.rejected_dialogues
        card = dataset_card(
            dialogues,
            tasks.load_task(experiment, folder),
            rejected=read_dialogues(rejected) if rejected.exists() else (),
            seed=experiment.seed,
        )
        write_atomically(folder.dataset_card, card)


def _read(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Reads a corpus, or a user's own dialogues; the dialogues are written last."""
    if experiment.data.source == "jsonl":
        dialogues, facts = own_dialogues.read(experiment.data)
        task = own_dialogues.task_of(dialogues, experiment.task, folder.experiment)
    else:
        dialogues, facts = _read_corpus(experiment.data, experiment.seed)
        task = tasks.corpus_task(experiment.data)
    check_words(experiment.network, dialogues)
    console.print("\n".join(facts), markup=False, highlight=False)
    write_atomically(folder.task, task.to_yaml())
    write_atomically(folder.dataset_card, dataset_card(dialogues, task, origin=facts))
    write_dialogues(folder.dialogues, dialogues)


def _read_corpus(data: DataConfig, seed: int) -> tuple[list[Dialogue], list[str]]:
    """Reads a corpus; each dialogue is marked with its part. Returns facts to know of it, too."""
    corpus = corpora.CORPORA[data.source]
    reading = corpus.read(Path(data.path), tasks.read_options(data))
    dialogues = reading.dialogues
    parts = corpora.split_dialogues(dialogues, {"train": 0.8, "test": 0.2}, seed)
    if empty := [part for part, group in parts.items() if not group]:
        raise corpora.CorpusError(
            f"{data.path}: of {len(dialogues):,} rated dialogues none is left for the part "
            f"{empty[0]!r}, which takes a fifth (test) or the rest (train). Give the whole corpus."
        )
    part_of = {dialogue.id: part for part, group in parts.items() for dialogue in group}
    marked = [dataclasses.replace(d, source={**d.source, "part": part_of[d.id]}) for d in dialogues]
    origin = f"{corpus.title} ({corpus.homepage}). Licence: {corpus.licence}."
    return marked, [origin, *reading.notes]


def _play(world: World, imagination: Imagination, seed: int, path: Path, console: Console) -> None:
    """Plays the dialogues chunk by chunk; each depends on its own seed alone."""
    with errors_of("imagination"):
        conversations = imagine_conversations(
            world, imagination.sampling, imagination.dialogues, seed, prefix=world.name
        )
    with written_in_chunks(path, CHUNK) as (done, write), ProgressBars(console) as bars:
        bar = bars.add_task("imagine", total=len(conversations), completed=done, note="")
        for start in range(done, len(conversations), CHUNK):
            chunk = conversations[start : start + CHUNK]
            dialogues = play_chunk(world, chunk)
            if imagination.planted.planted_flaws:
                dialogues = _with_flaws(world, dialogues, imagination.planted, seed)
            write(map(json_line, dialogues))
            bars.advance(bar, len(chunk))


def _with_flaws(
    world: World, originals: list[Dialogue], config: PlantedFlawsConfig, seed: int
) -> list[Dialogue]:
    """Plants flaws, and has them mended as far as a critique finds them."""
    dialogues = planted_flaws.plant(originals, world.task, config.planted_flaws, seed)
    if not config.mend_flaws:
        return dialogues
    rate = WorldHindsight(world).rate
    return planted_flaws.mend(dialogues, originals, world.task, rate)


def play_chunk(world: World, conversations: list[Conversation]) -> list[Dialogue]:
    agent = BehaviourAgent(world)
    dialogues = converse(agent, SimulatedHuman(world), conversations, world.task)
    sources = (
        {"kind": "simulated", "behaviour": agent.behaviour_of(each)} for each in conversations
    )
    return as_data(dialogues, sources, about_personas(world))
