"""`RunFolder`: where a run keeps its files, and what they were made from.

Each stage leaves a stamp with the settings that shape its files. A stage that is done is skipped;
one that was made from other settings is an error that names them, never silently overwritten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from experiments.config import base_config, imagines_with_llm
from experiments.files import write_atomically
from experiments.methods import parse_method, rounds_of
from ilql_jax.errors import UserError
from imagination.dialogue import Dialogue
from imagination.task import Task

STAGES = ("imagine", "regenerate", "train", "evaluate", "report")

# Settings that shape a stage's files; a stage depends on those of the stages before it too.
# `methods` and `seeds` only say how many units there are: more can be added to a finished run.
_SHAPED_BY = {
    "imagine": ("seed", "data", "task", "imagination"),
    "regenerate": ("hindsight",),
    "train": ("tokenizer", "model", "train", "objective", "dpo"),
    "evaluate": ("decoding", "evaluation"),
}
# So does `evaluation.prompted`: agents that can be added later, with the settings they alone have.
_OF_PROMPTED = (
    *("evaluation.prompted", "evaluation.prompted_episodes"),
    *("evaluation.gdp_zero", "evaluation.human_guidance"),
)
# What makes an LLM's answers what they are; all else in config.llm is about getting them.
_OF_LLM = ("llm.model", "llm.base_url")
_ADDED_WITH_PROMPTED = ("evaluation.prompted_episodes", *_OF_LLM)
# And hindsight, dpo and the tree search, by a method or an agent that needs them.
_ADDED_WITH_METHODS = ("hindsight.", "dpo.", "evaluation.gdp_zero.")
# Keys of task.yaml among the settings. Where success begins may be set anew when there are
# dialogues: results are counted by it.
_TASK = "task.yaml:"
_MAY_BE_SET_ANEW = "success_reward"
# Who this process is among others is no setting of the run.
_OF_PROCESS = "machine"
# How an LLM is asked, at which price, changes no answer.
_NEVER_SHAPING = (
    *("max_in_flight", "max_retries", "timeout", "batch", "batch_poll", "conversations"),
    *("cache", "cache_folder", "cache_max_megabytes"),
    *("max_cost", "batch_price_factor", "price_date"),
    *("price_input", "price_output", "price_cache_read", "price_cache_write"),
    "min_agreement",  # says whether to go on, not with what
)


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
        """What hindsight came to that is not learned from, and why."""
        return self.hindsight / "rejected.jsonl"

    @property
    def calibration(self) -> Path:
        """How well the reward model foretells known outcomes."""
        return self.hindsight / "calibration.json"

    @property
    def hindsight_card(self) -> Path:
        return self.hindsight / "card.md"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def heldout(self) -> Path:
        return self.path / "heldout.json"

    @property
    def conversations(self) -> Path:
        return self.path / "conversations.jsonl"

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
        """Where a network lies for use elsewhere."""
        return self.path / "export" / unit.name

    @property
    def llm(self) -> Path:
        """Folder of the LLM client: answers, failures, batches."""
        return self.path / "llm"

    def answers(self, llm: ConfigDict) -> Path:
        """Where the LLM client of a section of the settings keeps them: as set, else here."""
        return Path(llm.cache_folder or self.llm)

    @property
    def references(self) -> Path:
        return self.path / "evaluation" / "references.json"

    # What it was made from

    def saved_config(self) -> ConfigDict | None:
        """The settings that the folder was last run with, or None for a new folder."""
        loaded = self._read_config()
        loaded.pop("experiment", None)
        return ConfigDict(_tuples(loaded)) if loaded else None

    @property
    def experiment(self) -> str:
        """Name of the experiment that was run here, "" for a new folder."""
        return self._read_config().get("experiment", "")

    def _read_config(self) -> dict[str, Any]:
        if not self.config_file.exists():
            return {}
        try:
            loaded = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise RunError(f"{self.config_file}: not readable as YAML: {error}") from None
        if not isinstance(loaded, dict):
            raise RunError(f"{self.config_file} holds no settings; delete it or the folder.")
        return loaded

    def save_config(self, experiment: str, config: ConfigDict) -> None:
        """Writes the settings and the name of the experiment they are for."""
        settings = {"experiment": experiment, **_lists(config.to_dict())}
        del settings[_OF_PROCESS]
        write_atomically(self.config_file, yaml.safe_dump(settings, sort_keys=False))

    def check_experiment(self, name: str) -> None:
        """Raises `RunError` if another experiment was run in this folder."""
        other = self._read_config().get("experiment", name)
        if other != name:
            raise RunError(
                f"{self.path} holds a run of {other!r}, not of {name!r}. Give another folder "
                "(--workdir=...)."
            )

    def check_stage(self, stage: str, config: ConfigDict) -> None:
        """Raises `RunError` if the stage left files that were made with other settings."""
        stamp = self._stamp(stage)
        products = self._existing_products(stage)
        if not stamp.exists() or not products:
            return
        before, now = json.loads(stamp.read_text()), self._shaping(stage, config)
        # Settings that there have only been since had their defaults.
        defaults = _shaping(stage, base_config())
        before |= {key: defaults[key] for key in ({*now} - {*before}) & {*defaults}}
        added = [key for key in {*before} ^ {*now} if _may_be_added(key)]
        before, now = _without(before, added), _without(now, added)
        if any(key.startswith(_TASK) for key in before) and not self.task.exists():
            raise RunError(
                f"{self.task} is gone, which {', '.join(products)} was made from. Put it back "
                f"({stamp} tells what it said), or give a new folder (--workdir=...)."
            )
        differing = [
            f"{_named(key)} was {before.get(key)!r}, now {now.get(key)!r}"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        ]
        if differing:
            raise RunError(
                f"{self.path} was made from other settings ({stage}): {'; '.join(differing)}. "
                f"Give a new folder (--workdir=...), set these back, or delete what was made from "
                f"them: {', '.join(products)}."
            )

    def begin_stage(self, stage: str, config: ConfigDict) -> None:
        """Checks the stage and stamps it."""
        self.check_stage(stage, config)
        stamp = self._stamp(stage)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        kept = {}
        if stamp.exists() and self._existing_products(stage):
            # What such additions were made from holds while they are there, asked for or not.
            before = json.loads(stamp.read_text())
            kept = {key: value for key, value in before.items() if _may_be_added(key)}
        write_atomically(stamp, json.dumps({**kept, **self._shaping(stage, config)}, indent=1))

    def _shaping(self, stage: str, config: ConfigDict) -> dict[str, Any]:
        """Settings and, where it counts, fields of task.yaml that shape a stage's files."""
        return _shaping(stage, config) | self._task_shaping(stage, config)

    def _task_shaping(self, stage: str, config: ConfigDict) -> dict[str, Any]:
        counts = {
            "imagine": imagines_with_llm(config),
            "evaluate": config.evaluation.human == "prompted",
        }
        task = self.load_task() if counts.get(stage) else None
        if task is None:
            return {}
        fields = _lists(dataclasses.asdict(task))
        if stage == "imagine":
            del fields[_MAY_BE_SET_ANEW]
        return {f"{_TASK}{name}": value for name, value in fields.items()}

    def _existing_products(self, stage: str) -> list[str]:
        return [str(path) for path in self._products(stage) if path.exists()]

    def _products(self, stage: str) -> list[Path]:
        partial = self.dialogues.with_name(self.dialogues.name + ".partial")
        return {
            "imagine": [self.dialogues, partial],
            "regenerate": [self.hindsight],
            "train": [self.tokenizer, self.path / "checkpoints", self.path / "metrics"],
            "evaluate": [self.path / "evaluation", self.evaluation, self.heldout],
        }.get(stage, [])

    def _stamp(self, stage: str) -> Path:
        return self.path / "stages" / f"{stage}.json"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second process out of the folder; released when this one ends, however."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"another process is working in {self.path}. Wait for it, or give another "
                    "folder (--workdir=...)."
                ) from None
            try:
                yield
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise RunError(
                    f"the disk is full: {self.path} could not be written. What it holds is safe. "
                    "Free some space and run again; the run goes on where it was."
                ) from None


def is_for_training(dialogue: Dialogue) -> bool:
    """Whether a dialogue is learned from: all are, unless set apart for evaluation."""
    return dialogue.source.get("part", "train") == "train"


def _shaping(stage: str, config: ConfigDict) -> dict[str, Any]:
    """Flat settings that shape a stage's files."""
    sections = [s for each in STAGES[: STAGES.index(stage) + 1] for s in _SHAPED_BY.get(each, ())]
    flat: dict[str, Any] = {}
    for section in sections:
        if section == "hindsight" and not rounds_of(config.methods):
            continue
        if section == "dpo" and not any(parse_method(name).on_pairs for name in config.methods):
            continue
        value = config[section]
        if isinstance(value, ConfigDict):
            values = _lists(value.to_dict())
            flat |= {f"{section}.{k}": v for k, v in values.items() if k not in _NEVER_SHAPING}
        else:
            flat[section] = value
    flat = _without(flat, _OF_PROMPTED)
    return flat | _llm_shaping(config) if "evaluation" in sections else flat


def _named(key: str) -> str:
    return key if key.startswith(_TASK) else f"config.{key}"


def _may_be_added(key: str) -> bool:
    return key in _ADDED_WITH_PROMPTED or key.startswith(_ADDED_WITH_METHODS)


def _llm_shaping(config: ConfigDict) -> dict[str, Any]:
    """What the evaluation depends on where an LLM takes part in it, else nothing."""
    prompted, human = config.evaluation.prompted, config.evaluation.human
    if not prompted and human == "world":
        return {}
    shaping = {key: config.llm[key.partition(".")[2]] for key in _OF_LLM}
    if prompted:
        shaping["evaluation.prompted_episodes"] = config.evaluation.prompted_episodes
    if "gdp_zero" in prompted:
        search = _lists(config.evaluation.gdp_zero.to_dict())
        shaping |= {f"evaluation.gdp_zero.{key}": value for key, value in search.items()}
    if human == "prompted" and config.evaluation.human_guidance:
        shaping["evaluation.human_guidance"] = config.evaluation.human_guidance
    return shaping


def _without(settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def _lists(value: Any) -> Any:
    """Tuples as lists, as YAML and JSON have them."""
    if isinstance(value, Mapping):
        return {key: _lists(each) for key, each in value.items()}
    return [_lists(each) for each in value] if isinstance(value, (tuple, list)) else value


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
