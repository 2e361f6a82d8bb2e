"""The trained networks of a run: which there are, what they start from, and how they are loaded.

How they are trained is in `stages/train.py`, what they learn from in `training_data.py`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

from jax.sharding import Mesh

from experiments.build import Experiment, Network
from experiments.evaluation.summary import UnitResult
from experiments.methods import TrainedMethod
from experiments.run_folder import RunFolder, Unit
from ilql_jax import sharding
from ilql_jax.checkpoint import read_metadata, restore_params
from ilql_jax.models import ModelConfig, Params, abstract_params
from ilql_jax.models.hugging_face.read import find, start_params
from ilql_jax.models.lora import merge_adapters
from ilql_jax.policy import DecodingConfig, Policy
from imagination.agents.policy import PolicyAgent
from imagination.dialogue import iterate_dialogues, usual_system
from imagination.tokenization import DialogueTokenizer


def units(experiment: Experiment) -> list[Unit]:
    """All trainings that the settings ask for."""
    seeds = range(experiment.run.seeds)
    return [Unit(method.name, seed) for seed in seeds for method in experiment.methods]


def is_trained(folder: RunFolder, unit: Unit) -> bool:
    return folder.finished(unit).exists()


def train_seconds(folder: RunFolder, unit: Unit) -> float:
    """Time the training took, over all the sessions that it needed."""
    return json.loads(folder.finished(unit).read_text())["train_seconds"]


def pretrained_start(
    network: Network, shape: ModelConfig, seed: int, mesh: Mesh | None = None
) -> Callable[[], Params] | None:
    """Returns the function that makes the parameters to start from; None = a fresh network.

    Args:
        network: Names the pretrained network.
        shape: Of the network that is trained.
        seed: Of the value heads.
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
    shape = ModelConfig.from_dict(read_metadata(folder.checkpoints(unit))["model"])
    mesh = sharding.mesh_to_use(experiment.mesh)
    start_from = pretrained_start(experiment.network, shape, experiment.seed + unit.seed, mesh)
    params = restore_params(folder.checkpoints(unit), shape, mesh, start_from)
    return merge_adapters(shape, params)


def load_agent(
    experiment: Experiment,
    folder: RunFolder,
    unit: Unit,
    decoding: DecodingConfig,
    batch_size: int | None = None,
) -> PolicyAgent:
    """Loads the network of a unit as an agent that speaks in `batch_size` conversations."""
    tokenizer = DialogueTokenizer.load(folder.tokenizer)
    shape, params = trained_network(experiment, folder, unit)
    policy = Policy(
        shape,
        params,
        decoding,
        stop_token=tokenizer.end,
        allowed=tokenizer.writable(shape.decoder.vocab_size),
        max_utterance=experiment.speaking.max_utterance,
        batch_size=batch_size or experiment.speaking.batch_size,
        steer=experiment.method(unit.method).method.steer,
    )
    scale = None
    if experiment.method(unit.method).learns_values:
        scale = read_metadata(folder.checkpoints(unit))["reward_scale"]
    # Evaluation and chat speak to the agent as the data did.
    system = usual_system(itertools.islice(iterate_dialogues(folder.dialogues), 100))
    return PolicyAgent(policy, tokenizer, scale, keep_candidates=4, system=system)


def chosen_decoding(method: TrainedMethod, folder: RunFolder, unit: Unit) -> DecodingConfig:
    """The decoding chosen on validation episodes, else the first that the settings name."""
    result = folder.unit_result(unit)
    if result.exists():
        return DecodingConfig.parse(UnitResult.read(result).decoding)
    return method.decodings[0]
