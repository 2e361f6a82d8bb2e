"""The trained networks of a run: which there are, what they start from, and how they are loaded.

How they are trained is in `stages/train.py`, what they learn from in `training_data.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.sharding import Mesh
from rich.console import Console

from experiments.build import Experiment, Network
from experiments.evaluation.summary import UnitResult
from experiments.files import DAMAGE, read_json_object
from experiments.methods import TrainedMethod
from experiments.run_folder import RunError, RunFolder, Unit
from ilql_jax import sharding
from ilql_jax.checkpoint import (
    CheckpointError,
    latest_step,
    read_metadata,
    restore_params,
    set_aside_damaged,
)
from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.models import ModelConfig, Params, abstract_params
from ilql_jax.models.hugging_face.read import find, start_params
from ilql_jax.models.lora import merge_adapters
from ilql_jax.policy import Policy
from imagination.agents.policy import PolicyAgent
from imagination.checks import is_finite
from imagination.dialogue import DialogueError, usual_system
from imagination.tokenization import DialogueTokenizer

MOST_KEPT = 32  # different candidates of an utterance that are kept with it


def units(experiment: Experiment) -> list[Unit]:
    """All trainings that the settings ask for."""
    seeds = range(experiment.run.seeds)
    return [Unit(method.name, seed) for seed in seeds for method in experiment.methods]


def in_turn(experiment: Experiment, todo: Sequence[Unit]) -> list[Unit]:
    """Units with values and without in turn, as processes are to take them.

    Networks of a kind speak by the same programs. Two that start side by side then compile
    different ones, and the next of each kind finds them; and the costly ones are shared evenly.
    """
    with_values = [unit for unit in todo if experiment.method(unit.method).learns_values]
    without = [unit for unit in todo if unit not in with_values]
    paired = itertools.zip_longest(with_values, without)
    return [unit for pair in paired for unit in pair if unit is not None]


def is_trained(folder: RunFolder, unit: Unit) -> bool:
    """True if the training is done; a mark of that which is damaged is made again."""
    return train_seconds(folder, unit) is not None


def has_all(experiment: Experiment, folder: RunFolder) -> bool:
    """True if all networks that start from a pretrained one are trained."""
    if not experiment.network.pretrained or not folder.config_file.exists():
        return False
    return all(is_trained(folder, unit) for unit in units(experiment))


def train_seconds(folder: RunFolder, unit: Unit) -> float | None:
    """Time the training took, over all the sessions that it needed; None = it is not done."""
    try:
        seconds = read_json_object(folder.finished(unit))["train_seconds"]
    except (FileNotFoundError, *DAMAGE):
        return None
    return seconds if is_finite(seconds) else None


def load_tokenizer(folder: RunFolder) -> DialogueTokenizer:
    """The tokenizer of a run.

    Raises:
        RunError: It is not there, or damaged; the message says what to run again.
    """
    problem = "missing"
    if folder.tokenizer.is_dir():
        try:
            return DialogueTokenizer.load(folder.tokenizer)
        except DialogueError as error:
            problem = f"damaged ({str(error).rstrip('.')})"
    raise RunError(
        f"{folder.tokenizer} is {problem}, which the networks were trained with. Put it back; or "
        f"delete it, {folder.path / 'checkpoints'} and {folder.path / 'metrics'}, and run "
        "--stage=train again."
    )


def check_checkpoints(
    experiment: Experiment, folder: RunFolder, wanted: Iterable[Unit], console: Console
) -> None:
    """Sets damaged checkpoints aside and tells it; the training then has to go on from there.

    Args:
        experiment: Says how long each is trained.
        folder: Folder of the run.
        wanted: Networks that are going to be trained on, or used.
        console: Console that tells it.
    """
    for unit in wanted:
        for each in set_aside_damaged(folder.checkpoints(unit)):
            console.print(f"Warning: {each}", style="yellow", markup=False, highlight=False)
        last = experiment.method(unit.method).train.steps
        if is_trained(folder, unit) and (latest_step(folder.checkpoints(unit)) or 0) < last:
            folder.finished(unit).unlink()
            console.print(f"{unit.name} is not trained to the end any more: --stage=train does it.")


def is_used_up(folder: RunFolder, unit: Unit) -> bool:
    """True if nothing of a run asks for a network any more: it is trained and judged."""
    is_judged = folder.unit_result(unit).exists() or folder.heldout.exists()
    return is_judged and is_trained(folder, unit)


def check_identity(experiment: Experiment, folder: RunFolder, unit: Unit) -> None:
    """Raises `CheckpointError` unless the checkpoints of a unit are those of its own training."""
    if latest_step(folder.checkpoints(unit)) is None:
        raise CheckpointError(
            f"{folder.checkpoints(unit)} holds no checkpoint any more: it was deleted, or not "
            "copied with the rest, or set aside as damaged. Put it back, or train again: "
            f"the experiment's command with --workdir={folder.path} --stage=train."
        )
    saved = read_metadata(folder.checkpoints(unit))
    method = saved.get("method")
    found = {
        "method": method.get("name") if isinstance(method, dict) else None,
        "seed": saved.get("seed"),
        "unit": saved.get("unit", unit.name),  # older ones do not say it
    }
    own = experiment.method(unit.method).method.name
    expected = {"method": own, "seed": experiment.seed + unit.seed, "unit": unit.name}
    differing = [
        f"{name} {found[name]!r} instead of {expected[name]!r}"
        for name in expected
        if found[name] != expected[name]
    ]
    if differing:
        raise CheckpointError(
            f"{folder.checkpoints(unit)} holds a checkpoint of another training: "
            f"{', '.join(differing)}. Put back its own, or delete the folder and "
            f"{folder.finished(unit)}, and train again with --stage=train."
        )


def pretrained_start(
    network: Network, shape: ModelConfig, seed: int, mesh: Mesh | None = None
) -> Callable[[], Params] | None:
    """Returns the function that makes the parameters to start from; None = a fresh network.

    Args:
        network: Names the pretrained network.
        shape: Shape of the network that is trained.
        seed: Seed of the value heads.
        mesh: Devices that the parameters are laid out on; None = the first.
    """
    if not network.pretrained:
        return None

    def start() -> Params:
        layout = sharding.shardings(abstract_params(shape), mesh) if mesh else None
        return start_params(find(network.pretrained), shape, seed, layout)

    return start


def trained_network(
    experiment: Experiment, folder: RunFolder, unit: Unit
) -> tuple[ModelConfig, Params]:
    """Loads the network of a unit; adapters are merged into it.

    Its parameters lie on one device, or where `sharding.mesh_to_use` says. The network it started
    from is needed only where a part of that is frozen in it.
    """
    check_identity(experiment, folder, unit)
    shape = ModelConfig.from_dict(read_metadata(folder.checkpoints(unit))["model"])
    mesh = sharding.mesh_to_use(experiment.mesh)
    start_from = pretrained_start(experiment.network, shape, experiment.seed + unit.seed, mesh)
    params = restore_params(folder.checkpoints(unit), shape, mesh, start_from)
    return merge_adapters(shape, params)


def value_unit(folder: RunFolder, unit: Unit) -> tuple[float, float]:
    """The factor of the rewards that a network learned from, and the value its heads start at.

    Both shape what its values mean: a value in the task's unit is (output + start) / factor.
    """
    saved = read_metadata(folder.checkpoints(unit))
    return saved["reward_scale"], saved["packing"]["baseline"]


def load_agent(
    experiment: Experiment,
    folder: RunFolder,
    unit: Unit,
    decoding: DecodingConfig,
    batch_size: int | None = None,
    **more: Any,
) -> PolicyAgent:
    """Loads the network of a unit as an agent that speaks in `batch_size` conversations.

    Further arguments are those of `Policy`.
    """
    shape, params = trained_network(experiment, folder, unit)
    scale = None
    if experiment.method(unit.method).learns_values:
        scale, more["baseline"] = value_unit(folder, unit)
    return agent_of(experiment, folder, unit, shape, params, decoding, scale, batch_size, **more)


def agent_of(
    experiment: Experiment,
    folder: RunFolder,
    unit: Unit,
    shape: ModelConfig,
    params: Params,
    decoding: DecodingConfig,
    scale: float | None = None,
    batch_size: int | None = None,
    **more: Any,
) -> PolicyAgent:
    """An agent that speaks by a network of a unit, as it is in training or afterwards.

    It reads as much of a conversation as of a dialogue in training, `config.model.max_positions`,
    also where it started from a network that could read far more.
    """
    tokenizer = load_tokenizer(folder)
    longest = experiment.speaking.max_utterance
    # A chat template may have no such layout: only who looks ahead needs it.
    if any(each.lookahead for each in (decoding, *experiment.method(unit.method).decodings)):
        more["replies"] = tokenizer.replies(longest, shape.decoder.vocab_size)
        more["discount"] = experiment.batches.utterance_discount
    policy = Policy(
        shape,
        params,
        decoding,
        stop_token=tokenizer.end,
        allowed=tokenizer.writable(shape.decoder.vocab_size),
        max_utterance=longest,
        batch_size=batch_size or experiment.speaking.batch_size,
        max_context=experiment.network.max_positions - longest,
        steer=experiment.method(unit.method).method.steer,
        **more,
    )
    # Evaluation and chat speak to the agent as the data did.
    system = usual_system(itertools.islice(folder.iterate_dialogues(), 100))
    return PolicyAgent(policy, tokenizer, scale, keep_candidates=MOST_KEPT, system=system)


def chosen_decoding(method: TrainedMethod, folder: RunFolder, unit: Unit) -> DecodingConfig:
    """The decoding chosen on validation episodes, else the first that the settings name."""
    result = folder.unit_result(unit)
    if result.exists():
        return DecodingConfig.parse(UnitResult.read(result).decoding)
    return method.decodings[0]
