"""Stage export: a trained network as a folder that Hugging Face's `transformers` loads.

Leaves `export/<method>-seed<k>/`: policy, tokenizer, value heads and a model card (see
`ilql_jax/models/hugging_face/write.py`).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from rich.console import Console

from experiments.build import Experiment
from experiments.files import DAMAGE, read_json_object, write_atomically
from experiments.networks import (
    check_checkpoints,
    chosen_decoding,
    is_trained,
    load_tokenizer,
    trained_network,
    value_unit,
)
from experiments.run_folder import RunError, RunFolder, Unit
from experiments.tasks import load_task
from ilql_jax.models.hugging_face.write import save_pretrained
from imagination.dialogue import read_dialogues


def run(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Exports the network of `config.export`; one that was exported before is replaced.

    Files of the user's own in its folder stay.

    Raises:
        RunError: It was not trained here.
    """
    unit = Unit(experiment.export.method, experiment.export.seed)
    was_trained = is_trained(folder, unit)
    check_checkpoints(experiment, folder, [unit], console)
    if not was_trained:
        raise RunError(
            f"{folder.path} holds no trained {unit.name}. Run the experiment without "
            "--stage=export first, or choose with --config.export.method=..., "
            "--config.export.seed=... and --workdir=..."
        )
    tokenizer = load_tokenizer(folder)
    shape, params = trained_network(experiment, folder, unit)
    method = experiment.method(unit.method)
    about = {"method": unit.method, "decoding": str(chosen_decoding(method, folder, unit))}
    if method.learns_values:
        about["reward_scale"], about["baseline"] = value_unit(folder, unit)
    target = folder.export(unit)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_pretrained(
        partial,
        shape,
        params,
        card=model_card(experiment, folder, unit, about),
        dtype=experiment.export.dtype,
        special_tokens=tokenizer.special_tokens(),
        about=about,
    )
    tokenizer.export(partial)
    _move_into(partial, target)
    console.print(f"Exported: {target}", soft_wrap=True)


def _move_into(partial: Path, target: Path) -> None:
    """Moves an export to its place: over an older one, beside files of the user's own.

    Which files are ours is written down with them. `config.json`, without which nothing is read,
    goes first and comes last.
    """
    names = sorted(str(p.relative_to(partial)) for p in partial.rglob("*") if p.is_file())
    target.mkdir(parents=True, exist_ok=True)
    stale = [path.name for pattern in _TENSORS for path in target.glob(pattern)]
    with contextlib.suppress(FileNotFoundError, *DAMAGE):
        stale += [name for name in read_json_object(target / _WRITTEN)["files"] if _is_plain(name)]
    for name in ("config.json", *stale):
        with contextlib.suppress(FileNotFoundError):
            (target / name).unlink()
    write_atomically(target / _WRITTEN, json.dumps({"files": names}, indent=1))
    for name in sorted(names, key=lambda name: name == "config.json"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).replace(target / name)
    shutil.rmtree(partial)


# Of an older export, which a reader would follow.
_TENSORS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_WRITTEN = "export.json"


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


def model_card(experiment: Experiment, folder: RunFolder, unit: Unit, about: dict[str, Any]) -> str:
    """Renders the model card: model, training data, results, and how it is loaded."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "report" / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    base = experiment.network.pretrained
    return environment.get_template("model_card.md.j2").render(
        experiment=folder.experiment,
        task=_task(experiment, folder),
        unit=unit,
        about=about,
        base=base,
        # A name on the hub: of an owner and a model, or of an old model alone.
        base_on_hub=bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base)) and not Path(base).exists(),
        value_trunk=experiment.network.settings["value_trunk"],
        learns_values=experiment.method(unit.method).learns_values,
        dialogues=sum(1 for _ in folder.iterate_dialogues()),
        results=_results(folder, unit),
    )


def _task(experiment: Experiment, folder: RunFolder) -> str:
    """Describes the subject of the dialogues, as far as it is known."""
    if folder.task.exists() or experiment.data.source == "world":
        return load_task(experiment, folder).description
    return next(folder.iterate_dialogues()).task


def _results(folder: RunFolder, unit: Unit) -> list[dict[str, Any]]:
    """Mean reward in the conversations of the evaluation, where there was one."""
    file = folder.unit_conversations(unit)
    rewards: dict[str, list[float]] = {}
    for dialogue in read_dialogues(file) if file.exists() else ():
        if dialogue.reward is not None:
            rewards.setdefault(dialogue.source["population"], []).append(dialogue.total_reward)
    return [
        {"population": population, "conversations": len(each), "reward": np.mean(each)}
        for population, each in rewards.items()
    ]
