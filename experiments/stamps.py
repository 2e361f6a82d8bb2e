"""Stamps: the settings that the files of each stage were made from.

Each stage leaves `stages/<stage>.json`. A stage that is done is skipped; one that was made from
other settings is an error that names them, never silently overwritten. Which settings count is said
beside each of them (`shapes_result` in its dataclass): the others may change when a run goes on.
Of a pretrained checkpoint or tokenizer in a folder its content counts, not its path; a world or
data in a file of one's own may be moved, too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments import fingerprints
from experiments.build import Experiment, set_of
from experiments.config import SECTIONS
from experiments.files import read_json_object, write_atomically
from experiments.methods import file_digest
from experiments.run_folder import STAGES, RunError, RunFolder, as_lists
from ilql_jax.settings import REQUIRED, Settings, settings_of
from imagination.engine.config import PURPOSES
from imagination.llm.secrets import without_password

# Fields of task.yaml among the settings. Where success begins may be set anew when there are
# dialogues: results are counted by it.
_TASK = "task.yaml:"
_MAY_BE_SET_ANEW = "success_reward"
# Settings of methods and agents, which can be added to a finished run: they hold once stamped.
_WHOLE_GROUPS = (
    *("hindsight.", "imagination.round_", "method."),
    *("evaluation.gdp_zero.", "evaluation.llm.", "evaluation.player.llm."),
)
_ADDED_LATER = (*_WHOLE_GROUPS, "decoding.by_method.", "evaluation.prompted_episodes")
# What was done before a setting was added, where its default is something else.
_DONE_BEFORE = {"imagination.round_clone": True}
# Settings that may name a file or folder, known by its content, which is stamped beside the path.
_KNOWN_BY_CONTENT = {
    "data.path": fingerprints.of_file,
    "task.world": fingerprints.of_file,
    "tokenizer.pretrained": fingerprints.of_tokenizer,
    "model.pretrained": fingerprints.of_checkpoint,
}
# Files of one's own, which may be edited in their place: what was made from them is kept.
_MAY_BE_EDITED = ("data.path", "task.world")
_CONTENT = ":content"


@dataclasses.dataclass(frozen=True)
class Stamp:
    """Settings that shape a stage's files.

    Attributes:
        values: Key -> value, plain JSON.
        defaults: Key -> default, of those that have one.
    """

    values: Mapping[str, Any]
    defaults: Mapping[str, Any]


def check_stage(folder: RunFolder, stage: str, experiment: Experiment) -> None:
    """Raises `RunError` if the stage left files that were made with other settings."""
    path, products = stamp_file(folder, stage), _existing_products(folder, stage)
    if not path.exists() or not products:
        return
    before, stamp = _read(path, products, stage), stamp_of(folder, stage, experiment)
    before, now = _with_inherited(before, stamp.values), _with_inherited(stamp.values, before)
    # Settings that were added to the program since had their defaults, or what was done then.
    groups = {_group(key) for key in before} - {""}
    missing = {
        key for key in now.keys() - before.keys() if not _may_be_added(key) or _group(key) in groups
    }
    done = stamp.defaults | _DONE_BEFORE
    before |= {key: done[key] for key in missing if key in done}
    added = {key for key in before.keys() ^ now.keys() if _may_be_added(key)}
    before, now = _without(before, added), _without(now, added)
    if any(key.startswith(_TASK) for key in before) and not folder.task.exists():
        raise RunError(
            f"{folder.task} is gone, which {', '.join(products)} was made from. Put it back "
            f"({path} tells what it said), or give a new folder (--workdir=...)."
        )
    keys = sorted(key for key in {*before, *now} if not key.endswith(_CONTENT))
    changed = [key for key in keys if not _is_same(key, before, now)]
    # What one setting says may hold for several models.
    differing = dict.fromkeys(
        f"{_named(key, experiment, before)} {_difference(key, before, now)}" for key in changed
    )
    if differing:
        raise RunError(
            f"{folder.path} was made from other settings ({stage}): {'; '.join(differing)}. "
            f"Give a new folder (--workdir=...), set these back, or delete what was made from "
            f"them: {', '.join(products)}."
        )


def begin_stage(folder: RunFolder, stage: str, experiment: Experiment) -> None:
    """Checks the stage and stamps it."""
    check_stage(folder, stage, experiment)
    path = stamp_file(folder, stage)
    kept = {}
    if path.exists() and _existing_products(folder, stage):
        # What such additions were made from holds while they are there, asked for or not.
        before = _read(path, _existing_products(folder, stage), stage)
        kept = {key: value for key, value in before.items() if _is_kept(key)}
    values = stamp_of(folder, stage, experiment).values
    write_atomically(path, json.dumps({**kept, **values}, indent=1))


def stamp_of(folder: RunFolder, stage: str, experiment: Experiment) -> Stamp:
    """Settings that shape a stage's files; those of the stages before it shape them too."""
    parts = [_OF_STAGE[each] for each in STAGES[: STAGES.index(stage) + 1] if each in _OF_STAGE]
    pairs = {key: pair for part in parts for key, pair in part(experiment).items()}
    values = {key: as_lists(without_password(value)) for key, (value, _) in pairs.items()}
    for key, fingerprint in _KNOWN_BY_CONTENT.items():
        if content := fingerprint(values.get(key, "")):
            values[key + _CONTENT] = content
    defaults = {key: as_lists(default) for key, (_, default) in pairs.items()}
    return Stamp(
        values | _of_task_file(folder, stage, experiment),
        {key: default for key, default in defaults.items() if default is not REQUIRED},
    )


# --- settings that count, by stage: key -> value and default ------------------------------------

Pairs = dict[str, tuple[Any, Any]]

HOW_LEARNED = ("loss_on", "importance_weights")  # of `config.data`: they change training alone


def _of_imagine(experiment: Experiment) -> Pairs:
    data, task, imagination = experiment.data, experiment.task, experiment.imagination
    pairs = {"seed": (experiment.seed, 0), "data.source": (data.source, "world")}
    pairs |= _pairs("task", task)
    if data.source != "world":
        return pairs | _pairs("data", data, leave_out=HOW_LEARNED)
    engine = "world" if imagination.llm is None else "anthropic"
    pairs |= {
        "imagination.engine": (engine, "world"),
        "imagination.dialogues": (imagination.dialogues, REQUIRED),
    }
    sampling = imagination.sampling
    unused = () if sampling.personas == "balanced" else ("difficult_share",)
    pairs |= _pairs("imagination", sampling, leave_out=unused)
    if imagination.llm is None:
        pairs |= _pairs("imagination", imagination.planted)
    else:
        pairs |= _pairs("imagination", imagination.engine, leave_out=("seed", "sampling"))
        pairs |= _pairs("imagination.llm", imagination.llm)
        for purpose, llm in imagination.models.items():
            pairs |= _pairs(f"imagination.{purpose}.llm", llm)
    return pairs


def _of_regenerate(experiment: Experiment) -> Pairs:
    if not experiment.rounds:
        return {}
    hindsight = experiment.hindsight
    pairs = _pairs("hindsight", hindsight.config)
    if hindsight.llm is None:
        return pairs | _pairs("hindsight", hindsight.world)
    pairs |= _pairs("hindsight", hindsight.by_llm, leave_out=("seed",))
    return pairs | _pairs("hindsight.llm", hindsight.llm)


def _of_train(experiment: Experiment) -> Pairs:
    pairs = _pairs("tokenizer", experiment.tokenizer)
    defaults = {field.name: field.default for field in dataclasses.fields(experiment.data)}
    for name in HOW_LEARNED:
        pairs[f"data.{name}"] = (getattr(experiment.data, name), defaults[name])
    pairs |= _pairs("train", experiment.train) | _pairs("train", experiment.batches)
    if experiment.imagination_rounds:
        pairs |= _of_imagination_rounds(experiment)
    for kind in SECTIONS["model"]:
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        for name, about in settings_of(kind).items():
            if about.shapes_result and name in experiment.network.settings:
                value = experiment.network.settings[name]
                pairs[f"model.{name}"] = (value, defaults[name])
    for each in experiment.methods:
        base = experiment.library[each.method.name].method  # as it is without rounds
        pairs |= _pairs(f"method.{base.name}", base.config)
        if base.train is not None:
            pairs |= _pairs(f"method.{base.name}", base.train)
        if each.file:
            pairs[f"method.{base.name}.file"] = (file_digest(each.file), REQUIRED)
    return pairs


def _of_imagination_rounds(experiment: Experiment) -> Pairs:
    """Decoding and humans of rounds of imagination."""
    evaluation, rounds = experiment.evaluation, experiment.imagination.rounds
    pairs = _pairs("imagination", rounds) | {"evaluation.human": (evaluation.config.human, "world")}
    if not rounds.round_decoding:
        for each in experiment.methods:
            if each.imagination_rounds:
                first = (str(each.decodings[0]),)
                pairs[f"decoding.by_method.{each.method.name}"] = (first, REQUIRED)
    if evaluation.config.human == "prompted":
        pairs |= _pairs("evaluation.llm", evaluation.llm)
        if evaluation.player is not None:
            pairs |= _pairs("evaluation.player.llm", evaluation.player)
    return pairs


def _of_evaluate(experiment: Experiment) -> Pairs:
    evaluation = experiment.evaluation
    config = evaluation.config
    optional = ("prompted", "prompted_episodes", "human_guidance")
    pairs = _pairs("decoding", experiment.speaking)
    pairs |= _pairs("evaluation", config, leave_out=optional)
    for each in experiment.methods:
        tried = tuple(map(str, each.decodings))
        pairs[f"decoding.by_method.{each.method.name}"] = (tried, REQUIRED)
    if evaluation.llm is None:
        return pairs
    pairs |= _pairs("evaluation.llm", evaluation.llm)
    if evaluation.player is not None:
        pairs |= _pairs("evaluation.player.llm", evaluation.player)
    if config.prompted:
        pairs["evaluation.prompted_episodes"] = (config.prompted_episodes, 0)
    if "gdp_zero" in config.prompted:
        pairs |= _pairs("evaluation.gdp_zero", evaluation.search)
        pairs["evaluation.gdp_zero.acts"] = (dict(evaluation.acts or {}), {})
    if config.human == "prompted" and config.human_guidance:
        pairs["evaluation.human_guidance"] = (config.human_guidance, REQUIRED)
    return pairs


_OF_STAGE = {
    "imagine": _of_imagine,
    "regenerate": _of_regenerate,
    "train": _of_train,
    "evaluate": _of_evaluate,
}


def _pairs(prefix: str, settings: Settings, leave_out: Iterable[str] = ()) -> Pairs:
    """Values and defaults of the settings of a dataclass that shape results."""
    described = settings_of(type(settings))
    return {
        f"{prefix}.{field.name}": (_plain(getattr(settings, field.name)), _plain(field.default))
        for field in dataclasses.fields(settings)
        if field.name not in leave_out
        and (field.name not in described or described[field.name].shapes_result)
    }


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _of_task_file(folder: RunFolder, stage: str, experiment: Experiment) -> dict[str, Any]:
    """Fields of task.yaml, where it shapes the stage's files."""
    counts = {
        "imagine": experiment.imagines_with_llm,
        "evaluate": experiment.evaluation.config.human == "prompted",
    }
    task = folder.load_task() if counts.get(stage) else None
    if task is None:
        return {}
    fields = as_lists(dataclasses.asdict(task))
    if stage == "imagine":
        del fields[_MAY_BE_SET_ANEW]
    if not fields["reward_unit"]:  # stamps of before have none
        del fields["reward_unit"]
    return {f"{_TASK}{name}": value for name, value in fields.items()}


# --- names and files ----------------------------------------------------------------------------


# Models that have what is not set for them from another section.
_INHERITS = {"evaluation.player": "evaluation"} | {
    f"imagination.{purpose}": "imagination" for purpose in PURPOSES
}


def _inherited_from(key: str) -> str:
    """The key whose value holds where this one is not set; "" = none."""
    section, of_llm, name = key.partition(".llm.")
    return f"{_INHERITS[section]}.llm.{name}" if of_llm and section in _INHERITS else ""


def _with_inherited(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The settings, with those of `keys` that hold by another."""
    sources = {key: _inherited_from(key) for key in keys if key not in values}
    return {**values, **{key: values[other] for key, other in sources.items() if other in values}}


def _named(key: str, experiment: Experiment, before: Mapping[str, Any]) -> str:
    """The key as on the command line."""
    if key.startswith(_TASK):
        return key
    if key.startswith("method.") and key.endswith(".file"):
        return f"the file of the method {key.split('.')[1]}"
    section, of_llm, name = key.partition(".llm.")
    if of_llm:
        own = functools.reduce(operator.getitem, section.split("."), experiment.settings)
        is_own = name in set_of(own)  # another model than that of the section above
        if (other := _inherited_from(key)) and not is_own:
            if before.get(key) == before.get(other):
                return _named(other, experiment, before)
            is_own = True  # it was
        return f"config.{section if is_own else 'llm'}.{name}"
    return f"config.{key.replace('decoding.by_method.', 'decoding.')}"


def _is_same(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """True for equal values; a file or folder may be named by another path to it, or be moved."""
    was, given = before.get(key), now.get(key)
    if key not in _KNOWN_BY_CONTENT:
        return was == given
    is_in_place = was == given or _is_same_path(was, given)
    contents = before.get(key + _CONTENT), now.get(key + _CONTENT)
    # Stamps of before have none, nor has what is gone.
    if not all(contents) or (is_in_place and key in _MAY_BE_EDITED):
        return is_in_place
    return contents[0] == contents[1]


def _is_same_path(was: Any, given: Any) -> bool:
    if not (isinstance(was, str) and isinstance(given, str) and was and given):
        return False
    try:
        return _resolved(was) == _resolved(given)
    except (OSError, ValueError):  # a loop of links, a null character: no path
        return False


def _difference(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    was, given = before.get(key), now.get(key)
    told = f"was {was!r}" if was == given else f"was {was!r}, now {given!r}"
    has_contents = before.get(key + _CONTENT) and now.get(key + _CONTENT)
    return f"{told}, which holds something else now" if has_contents else told


def _resolved(path: str) -> str:
    return os.path.realpath(os.path.expanduser(path))


def _may_be_added(key: str) -> bool:
    # The human of the evaluation is bound by a training that has rounds of imagination alone.
    return key == "evaluation.human" or key.startswith(_ADDED_LATER)


def _is_kept(key: str) -> bool:
    """True for what a stamp goes on telling when the settings of now do not."""
    return _may_be_added(key) or key.endswith(_CONTENT)


def _group(key: str) -> str:
    """The settings that are all stamped together with this one; "" = none are."""
    prefix = next(filter(key.startswith, _WHOLE_GROUPS), "")
    return key.rpartition(".")[0] if prefix.endswith(".") else prefix


def _existing_products(folder: RunFolder, stage: str) -> list[str]:
    return [str(path) for path in folder.products(stage) if path.exists()]


def _read(path: Path, products: Iterable[str], stage: str) -> dict[str, Any]:
    """The settings of a stamp; raises `RunError` for one that is damaged."""
    try:
        return read_json_object(path)
    except ValueError as error:
        raise RunError(
            f"{path} is damaged ({error}): it told which settings {', '.join(products)} was made "
            "from. If those are the settings now, delete it, and it is made again; else delete "
            f"what was made too, and run --stage={stage} again."
        ) from None


def stamp_file(folder: RunFolder, stage: str) -> Path:
    """File of a stage's stamp."""
    return folder.path / "stages" / f"{stage}.json"


def _without(settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}
