"""The trained networks of a run: which there are, what they start from, and how they are loaded.

How they are trained is in `stages/train.py`, what they learn from in `training_data.py`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import config as settings
from experiments.evaluation.summary import UnitResult
from experiments.methods import parse_method
from experiments.run_folder import RunFolder, Unit
from ilql_jax import sharding
from ilql_jax.checkpoint import read_metadata, restore_params
from ilql_jax.methods import METHODS
from ilql_jax.models import ModelConfig, Params, abstract_params
from ilql_jax.models.hugging_face.read import find, start_params
from ilql_jax.models.lora import merge_adapters
from ilql_jax.policy import DecodingConfig, Policy
from imagination.agents.policy import PolicyAgent
from imagination.dialogue import iterate_dialogues, usual_system
from imagination.tokenization import DialogueTokenizer


def units(config: ConfigDict) -> list[Unit]:
    """All trainings that the settings ask for."""
    return [Unit(method, seed) for seed in range(config.seeds) for method in config.methods]


def is_trained(folder: RunFolder, unit: Unit) -> bool:
    return folder.finished(unit).exists()


def train_seconds(folder: RunFolder, unit: Unit) -> float:
    """Time the training took, over all the sessions that it needed."""
    return json.loads(folder.finished(unit).read_text())["train_seconds"]


def pretrained_start(
    config: ConfigDict, shape: ModelConfig, seed: int, mesh: Mesh | None = None
) -> Callable[[], Params] | None:
    """Makes what trainings of this seed start from; None = a fresh network."""
    if not config.model.pretrained:
        return None

    def start() -> Params:
        layout = sharding.shardings(abstract_params(shape), mesh) if mesh else None
        return start_params(find(config.model.pretrained), shape, config.seed + seed, layout)

    return start


def trained_network(
    config: ConfigDict, folder: RunFolder, unit: Unit
) -> tuple[ModelConfig, Params]:
    """What a unit has learned, as a network like any other: adapters are merged into it.

    Its parameters lie on one device, or where `sharding.mesh_to_use` says. What it was trained from
    is needed only where that is frozen in it.
    """
    shape = ModelConfig.from_dict(read_metadata(folder.checkpoints(unit))["model"])
    mesh = sharding.mesh_to_use(settings.mesh_config(config))
    start_from = pretrained_start(config, shape, unit.seed, mesh)
    params = restore_params(folder.checkpoints(unit), shape, mesh, start_from)
    return merge_adapters(shape, params)


def load_agent(
    config: ConfigDict,
    folder: RunFolder,
    unit: Unit,
    decoding: DecodingConfig,
    batch_size: int | None = None,
) -> PolicyAgent:
    """The trained network of a unit as an agent that speaks in `batch_size` conversations."""
    tokenizer = DialogueTokenizer.load(folder.tokenizer)
    shape, params = trained_network(config, folder, unit)
    policy = Policy(
        shape,
        params,
        decoding,
        stop_token=tokenizer.end,
        allowed=tokenizer.writable(shape.decoder.vocab_size),
        max_utterance=config.decoding.max_utterance,
        batch_size=batch_size or config.decoding.batch_size,
        steer=METHODS[parse_method(unit.method).objective].steer,
    )
    scale = None
    if parse_method(unit.method).learns_values:
        scale = read_metadata(folder.checkpoints(unit))["reward_scale"]
    # Evaluation and chat speak to the agent as the data did.
    system = usual_system(itertools.islice(iterate_dialogues(folder.dialogues), 100))
    return PolicyAgent(policy, tokenizer, scale, keep_candidates=4, system=system)


def chosen_decoding(config: ConfigDict, folder: RunFolder, unit: Unit) -> DecodingConfig:
    """As chosen on validation episodes, else the first of the config's."""
    result = folder.unit_result(unit)
    if result.exists():
        return DecodingConfig.parse(UnitResult.read(result).decoding)
    return settings.decodings(config, unit.method)[0]
