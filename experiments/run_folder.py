"""`RunFolder`: the files of a run, and the settings it was last run with.

Which settings the files were made from is in `stamps.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from experiments.files import write_atomically
from ilql_jax.checkpoint import CheckpointError, check_folder
from ilql_jax.disk import disk_error
from ilql_jax.errors import UserError
from imagination.dialogue import Dialogue, iterate_dialogues
from imagination.llm.secrets import without_password
from imagination.task import Task
from imagination.yaml_files import YAMLProblem, parse_yaml

STAGES = ("imagine", "regenerate", "train", "evaluate", "report")


class RunError(UserError, RuntimeError):
    """A run folder that does not fit. The message says what differs and what to do."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """One training of one method."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-seed{self.seed}"

    @classmethod
    def parse(cls, name: str) -> Unit | None:
        """The training of this name; None if it is none."""
        found = re.fullmatch(r"(.+)-seed([0-9]+)", name)
        return cls(found[1], int(found[2])) if found else None


class RunFolder:
    """The files of a run."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    # Where things are

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def dialogues(self) -> Path:
        return self.path / "dialogues.jsonl"

    def iterate_dialogues(self) -> Iterator[Dialogue]:
        """The dialogues that the agents of a run learned from, one at a time.

        Raises:
            RunError: The file is missing, or empty; the message says how it is made again.
            DialogueError: A damaged line, when it is reached.
        """
        anew = f"run the experiment's command with --workdir={self.path} --stage=imagine"
        if not self.dialogues.exists():
            raise RunError(
                f"{self.dialogues} is missing, which the agents of this run learned from: it was "
                f"deleted, or not copied with the rest. Put it back, or {anew}, which makes it "
                "again."
            )
        found = iterate_dialogues(self.dialogues)
        first = list(itertools.islice(found, 1))
        if not first:
            raise RunError(f"{self.dialogues} holds no dialogue. Delete it, and {anew}.")
        return itertools.chain(first, found)

    @property
    def rejected_dialogues(self) -> Path:
        """Imagined dialogues that are not learned from, with the reasons."""
        return self.path / "rejected.jsonl"

    @property
    def task(self) -> Path:
        return self.path / "task.yaml"

    def load_task(self) -> Task | None:
        """The task as `task.yaml` says; None where the run has no such file.

        Raises:
            TaskError: The file cannot be used; the message names the field.
        """
        if not self.task.exists():
            return None
        return Task.load(self.task)

    @property
    def dataset_card(self) -> Path:
        return self.path / "dataset_card.md"

    @property
    def hindsight(self) -> Path:
        return self.path / "hindsight"

    def hindsight_round(self, number: int) -> Path:
        """Dialogues that were made in a round, counted from 1."""
        return self.hindsight / f"round{number}.jsonl"

    @property
    def rejected(self) -> Path:
        """Hindsight that is not learned from, with the reasons."""
        return self.hindsight / "rejected.jsonl"

    @property
    def calibration(self) -> Path:
        """The reward model's agreement with known outcomes."""
        return self.hindsight / "calibration.json"

    @property
    def hindsight_card(self) -> Path:
        return self.hindsight / "card.md"

    def imagined(self, unit: Unit) -> Path:
        """Conversations of the round of imagination that a training learns from last."""
        return self.path / "imagination" / f"{unit.name}.jsonl"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def diagnosis(self) -> Path:
        """Losses of the methods against the optimum."""
        return self.path / "diagnosis.json"

    @property
    def heldout(self) -> Path:
        return self.path / "heldout.json"

    @property
    def conversations(self) -> Path:
        return self.path / "conversations.jsonl"

    @property
    def chats(self) -> Path:
        """Conversations of people with the agents in --stage=chat, with their ratings."""
        return self.path / "chats.jsonl"

    @property
    def sessions(self) -> Path:
        """By which command, code and machine each stage was made."""
        return self.path / "sessions.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def checkpoints(self, unit: Unit) -> Path:
        return self.path / "checkpoints" / unit.name

    def metrics(self, unit: Unit) -> Path:
        return self.path / "metrics" / f"{unit.name}.jsonl"

    def finished(self, unit: Unit) -> Path:
        """Written when a training is done; says how long it took."""
        return self.metrics(unit).with_suffix(".finished.json")

    def unit_result(self, unit: Unit) -> Path:
        return self.path / "evaluation" / f"{unit.name}.json"

    def unit_conversations(self, unit: Unit) -> Path:
        return self.path / "evaluation" / f"{unit.name}.jsonl"

    def export(self, unit: Unit) -> Path:
        """Folder of a network for use elsewhere."""
        return self.path / "export" / unit.name

    @property
    def llm(self) -> Path:
        """Folder of the LLM client: answers, failures, batches."""
        return self.path / "llm"

    def answers(self, cache_folder: str) -> Path:
        """Folder where the LLM client keeps answers: the one that is set, else one in here."""
        return Path(cache_folder or self.llm)

    @property
    def references(self) -> Path:
        return self.path / "evaluation" / "references.json"

    # What it was made from

    def saved_config(self) -> ConfigDict | None:
        """The settings that the folder was last run with, or None for a new folder."""
        loaded = self._read_config()
        loaded.pop("experiment", None)
        try:
            return ConfigDict(as_tuples(loaded)) if loaded else None
        except (TypeError, ValueError) as error:  # e.g. a name with a dot in it
            raise RunError(f"{self.config_file} holds no settings: {error}") from None

    @property
    def experiment(self) -> str:
        """Name of the experiment that was run here, "" for a new folder."""
        return self._read_config().get("experiment", "")

    def known_experiment(self) -> str:
        """Name of the experiment that was run here; raises `RunError` where none was."""
        if not self.path.is_dir():
            raise RunError(f"there is no folder {self.path}. Give that of a run that was trained.")
        if not self.experiment:
            raise RunError(
                f"{self.path} holds no run: no {self.config_file.name} in it names an experiment. "
                "Give the folder of one that was trained; where that file was lost, run the "
                f"experiment's command again with --workdir={self.path}: it writes the file."
            )
        return self.experiment

    def _read_config(self) -> dict[str, Any]:
        if not self.config_file.exists():
            return {}
        try:
            loaded = parse_yaml(self.config_file.read_bytes())
        except YAMLProblem as problem:
            raise RunError(
                f"{self.config_file} cannot be read: {problem}. Repair it or delete it: settings "
                "are then those of the experiment and of the command line."
            ) from None
        if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
            raise RunError(f"{self.config_file} holds no settings; delete it or the folder.")
        return loaded

    def save_config(self, experiment: str, config: ConfigDict) -> None:
        """Writes the settings, without passwords, and the name of the experiment they are for."""
        settings = {"experiment": experiment, **as_lists(without_password(config.to_dict()))}
        del settings["machine"]  # which process this is among others is no setting of the run
        write_atomically(self.config_file, yaml.safe_dump(settings, sort_keys=False))

    def check_path(self) -> None:
        """Raises `RunError` for a folder that a run could not be read back from, or that leads out.

        It may come from somebody else: what is written there must not land elsewhere, and no
        reading may wait for ever.
        """
        try:
            check_folder(self.path)
        except CheckpointError as error:
            raise RunError(f"--workdir: {error}") from None
        _check_entries(self.path)

    def check_experiment(self, name: str) -> None:
        """Raises `RunError` if another experiment was run in this folder."""
        other = self._read_config().get("experiment", name)
        if other != name:
            raise RunError(
                f"{self.path} holds a run of {other!r}, not of {name!r}, as its "
                f"{self.config_file.name} says. Give another folder (--workdir=...)."
            )

    def products(self, stage: str) -> list[Path]:
        """Files and folders that a stage leaves."""
        partial = self.dialogues.with_name(self.dialogues.name + ".partial")
        return {
            "imagine": [self.dialogues, partial, self.rejected_dialogues],
            "regenerate": [self.hindsight],
            "train": [
                *(self.path / name for name in ("checkpoints", "imagination", "metrics")),
                self.tokenizer,
            ],
            "evaluate": [self.path / "evaluation", self.evaluation, self.heldout],
        }.get(stage, [])

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second process out of the folder; released when this one ends, however."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("w")
        except OSError as error:
            raise disk_error(error, self.path) or error from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"another process is working in {self.path}. Wait for it, or give another "
                    "folder (--workdir=...)."
                ) from None
            try:
                yield
            except Exception as error:
                if isinstance(error, UserError) or (found := disk_error(error, self.path)) is None:
                    raise
                raise found from None


def is_for_training(dialogue: Dialogue) -> bool:
    """True if a dialogue is learned from: all are, unless set apart for evaluation."""
    return dialogue.source.get("part", "train") == "train"


def as_lists(value: Any) -> Any:
    """Tuples as lists, as YAML and JSON have them."""
    if isinstance(value, Mapping):
        return {key: as_lists(each) for key, each in value.items()}
    return [as_lists(each) for each in value] if isinstance(value, (tuple, list)) else value


def as_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: as_tuples(each) for key, each in value.items()}
    return tuple(as_tuples(each) for each in value) if isinstance(value, list) else value


# Folders that a run writes into; others in its folder are somebody's own.
_FOLDERS = ("checkpoints", "evaluation", "export", "figures", "hindsight", "imagination", "llm")
_FOLDERS += ("metrics", "stages", "tokenizer", "tokenizer.partial")
_NOWHERE = ("/dev/null", "/dev/full")  # keep nothing, and give nothing


def _check_entries(folder: Path) -> None:
    """Raises `RunError` for links that lead out of a folder, and for what is no file."""
    inside = os.path.realpath(folder)
    for place, folders, files in os.walk(folder):
        paths = [os.path.join(place, name) for name in (*folders, *files)]
        if Path(place) == folder:
            folders[:] = [name for name in folders if name in _FOLDERS]
        for path in paths:
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:  # of a process that works there
                continue
            target = os.path.realpath(path)
            if stat.S_ISLNK(mode) and target not in _NOWHERE:
                if os.path.commonpath([inside, target]) != inside:
                    raise RunError(
                        f"{path} is a link to {target}: what is written there would land outside "
                        "of the run's folder, which may come from somebody else. Put a file or "
                        "folder of its own in its place; to keep a run on another disk, give a "
                        "folder there (--workdir=...), or a link to one."
                    )
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise RunError(f"{path} is neither a file nor a folder. Move it away.")
