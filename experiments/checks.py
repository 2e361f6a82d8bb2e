"""Checks across sections: what settings require of each other, before anything starts.

What a single value has to be is checked by the dataclass that it becomes a field of (`build.py`).
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.build import Experiment, build, errors_of, set_of
from experiments.config import ConfigError
from experiments.imagination_config import PlantedFlawsConfig, WorldHindsightConfig
from experiments.methods import TrainedMethod, in_order
from experiments.metrics import check_backends
from experiments.provenance import accelerators
from ilql_jax.methods import MethodError
from ilql_jax.models import ModelConfig
from ilql_jax.models.hugging_face.read import check_tensors
from ilql_jax.partition import check_start
from ilql_jax.rehearsal import rehearse
from ilql_jax.settings import REQUIRED, SettingError
from ilql_jax.train_step import check_accumulation, check_step
from imagination.agents.prompted import check_acts
from imagination.engine.config import PURPOSES
from imagination.hindsight.llm import LLMHindsightConfig

MOST_UNLIMITED = 2000  # dialogues that an LLM is asked for without a limit on their cost
MOST_OF_A_DEVICE, MOST_DEVICES = 300 * 10**9, 100_000  # bytes of memory; of a cluster
FEWEST_TOKENS = 260  # bytes and markers, which every BPE trained here has


def checked(config: ConfigDict, *, judged: bool = True, trained: bool = True) -> Experiment:
    """Builds the experiment and checks it; the arguments are those of `check`.

    Raises:
        ConfigError: The first setting that cannot be used.
    """
    experiment = build(config)
    check(experiment, config, judged=judged, trained=trained)
    return experiment


def check(
    experiment: Experiment, config: ConfigDict, *, judged: bool = True, trained: bool = True
) -> None:
    """Raises `ConfigError` for settings that exclude each other.

    Args:
        experiment: As built.
        config: The settings that it was built from, which say how things are called.
        judged: Agents are going to be evaluated.
        trained: Networks are going to be trained; those that are there need not find again what
            they were trained from.
    """
    _check_methods(experiment, config)
    _check_imagination(experiment, config)
    _check_world(experiment, judged)
    _check_hindsight(experiment, config)
    _check_rounds_of_imagination(experiment, config)
    _check_evaluation(experiment, config)
    _check_speaking(experiment)
    if trained:
        _check_networks(experiment, config)
    check_backends(experiment.logging)


def _check_methods(experiment: Experiment, config: ConfigDict) -> None:
    """Order of the methods, and decodings that fit what they learn."""
    try:
        in_order(experiment.methods)
    except MethodError as error:
        raise ConfigError(f"config.methods is {config.methods}: {error}") from None
    for each in experiment.methods:
        if each.learns_from_pairs and each.method.starts_from is None:
            raise ConfigError(
                f"config.methods: {each.name} learns from pairs, so it needs a reference policy: "
                "let its METHOD name one as starts_from, e.g. 'bc'."
            )
        if experiment.data.importance_weights and each.rounds and not each.learns_from_pairs:
            raise ConfigError(
                f"config.data.importance_weights is true, but {each.name} learns from regenerated "
                "dialogues too, whose personas are inferred and of no known probability. Set it to "
                "false, or leave this method out of config.methods."
            )
    for each in experiment.library.values():
        for decoding in each.decodings:
            try:
                each.method.check_decoding(decoding)
            except MethodError as error:
                raise ConfigError(
                    f"config.decoding.{each.name}: {error} (config.method.{each.name})"
                ) from None


def _check_networks(experiment: Experiment, config: ConfigDict) -> None:
    """Shape, start and training of every method, and the tensors of a checkpoint that lies here."""
    network = experiment.network
    folder = Path(network.pretrained).expanduser()
    if network.pretrained and folder.is_dir():
        # First: a shape that its tensors do not have may be of any size.
        with errors_of("model.pretrained"):
            check_tensors(folder)
    with errors_of("model", "tokenizer", config=config):
        shape = network.shape(experiment.tokenizer.vocab_size)
        check_start(shape, bool(network.pretrained))
    for each in experiment.methods:
        rows = experiment.rows_of_pairs if each.learns_from_pairs else experiment.batches.batch_rows
        own = f"method.{each.method.name}"
        with errors_of("train", "model", own, config=config):
            check_accumulation(rows, each.train.gradient_accumulation)
            check_step(each.method.network_for(shape), each.method, each.train)
        _check_goes_on(experiment, each, shape)
        _check_memory(experiment, each, each.method.network_for(shape))
        # Hosts of a cluster have to meet before JAX does anything, so there training tells it.
        if each.file and not experiment.machine.coordinator:
            with errors_of("methods"):
                rehearse(each.method, each.method.network_for(shape), each.train)


def _check_goes_on(experiment: Experiment, method: TrainedMethod, shape: ModelConfig) -> None:
    """A training goes on in the network that another has left."""
    if not method.starts_from:
        return
    before = experiment.method(method.starts_from).method.network_for(shape)
    if method.method.network_for(shape) != before:
        raise ConfigError(
            f"config.methods: {method.name} goes on from {method.starts_from}, but trains another "
            "network. Let its METHOD name the same one (`network`), or not go on "
            "(config.imagination.round_start=fresh)."
        )


def _check_memory(experiment: Experiment, method: TrainedMethod, shape: ModelConfig) -> None:
    """Raises `ConfigError` for sizes that no memory here holds, by what is needed at the least."""
    trunk, network, speaking = shape.decoder, experiment.network, experiment.speaking
    parameters = trunk.matrix_parameters * shape.num_trunks
    if method.learns_values and shape.value_heads == "mlp":
        parameters += 2 * shape.value_inner_size * trunk.vocab_size
    # Frozen ones have no gradient and no momentum, and may be of 16 bits.
    frozen = trunk.lora_rank > 0 or experiment.train.freeze_trunk
    tokens = experiment.batches.batch_rows // method.train.gradient_accumulation
    tokens *= network.max_positions
    cached = 2 * trunk.num_layers * trunk.kv_heads * trunk.head_size
    sizes = {
        f"config.model: the network of {method.name} has {parameters:,} parameters, with "
        f"{trunk.vocab_size:,} tokens (config.tokenizer.vocab_size), which take": (
            parameters * (2 if frozen else 12)
        ),
        f"config.train.batch_rows is {experiment.batches.batch_rows:,}: the states of "
        f"{tokens:,} tokens take": tokens * trunk.hidden_size * 4,
        f"config.decoding.batch_size is {speaking.batch_size:,}: the keys and values of as many "
        "conversations take": speaking.batch_size * network.max_positions * cached * 4,
    }
    most = _most_memory(experiment)
    for what, size in sizes.items():
        if size > most:
            raise ConfigError(
                f"{what} {size / 1e9:,.0f} GB at the least, and there are {most / 1e9:,.0f} GB of "
                "memory. Choose a smaller size, or more devices (config.mesh)."
            )


def _most_memory(experiment: Experiment) -> int:
    """Bytes of memory that a training can have, over all its devices; a generous bound.

    Devices are not asked: that would take hold of them, and hosts may still have to meet.
    """
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    mesh = experiment.mesh
    sizes = [mesh.data, mesh.fsdp, mesh.tensor]
    if -1 in sizes or experiment.machine.coordinator:
        return max(here, MOST_OF_A_DEVICE * MOST_DEVICES)
    return max(here, MOST_OF_A_DEVICE * math.prod(sizes)) if accelerators() else here


def _check_imagination(experiment: Experiment, config: ConfigDict) -> None:
    llm = experiment.imagination.llm
    if not experiment.imagines_with_llm:
        given = [f"imagination.{name}" for name in set_of(config.imagination)]
        for purpose in PURPOSES:
            own = set_of(config.imagination[purpose])
            given += [f"imagination.{purpose}.{name}" for name in own]
        if experiment.data.source != "jsonl":
            given += [f"task.{name}" for name in experiment.task.given()]
        if given:
            raise ConfigError(
                f"config.{given[0]} is for an LLM that imagines, and none does: set "
                "config.imagination.engine=anthropic."
            )
        if experiment.data.source != "world":
            _check_no_planted_flaws(config, f"those of {experiment.data.source}")
        return
    _check_no_planted_flaws(config, "those of an LLM, which makes its own")
    dialogues = experiment.imagination.dialogues
    if dialogues > MOST_UNLIMITED and not llm.max_cost and not llm.base_url:
        raise ConfigError(
            f"config.imagination.dialogues is {dialogues:,} and an LLM is to imagine them, with no "
            "limit on the cost. Set config.llm.max_cost (with price_input and price_output), or at "
            f"most {MOST_UNLIMITED:,} dialogues; --dry_run shows the cost."
        )


def _check_no_planted_flaws(config: ConfigDict, whose: str) -> None:
    if given := _changed(config.imagination, PlantedFlawsConfig):
        raise ConfigError(
            f"config.imagination.{given[0]} is for the dialogues of an embedded world, and these "
            f"are {whose}. Leave it out."
        )


def _check_world(experiment: Experiment, judged: bool) -> None:
    """Without a world, dialogues and humans come from an LLM."""
    if experiment.task.world or experiment.data.source != "world":
        return
    if not experiment.imagines_with_llm or not experiment.task.description:
        raise ConfigError(
            'config.task.world is "". Name a world (teaching, travel, or a .py file of your own); '
            "or have an LLM imagine the dialogues, with config.imagination.engine=anthropic and "
            "the task in a paragraph, config.task.description; or bring dialogues of your own, "
            "with config.data.source=jsonl and config.data.path."
        )
    if judged and experiment.evaluation.config.human == "world":
        raise ConfigError(
            'config.task.world is "", so there are no humans of a world to judge by. Have an LLM '
            "play them, with config.evaluation.human=prompted and config.llm.model; or stop before "
            "that, with --stage=train."
        )


def _check_hindsight(experiment: Experiment, config: ConfigDict) -> None:
    """Settings of who does not look back, and that there is somebody who can."""
    by_llm = experiment.hindsight.llm is not None
    if by_llm:
        given = _changed(config.hindsight, WorldHindsightConfig)
        whose, other = "a world's controller", "world"
    else:
        given = _changed(config.hindsight, LLMHindsightConfig)
        given += set_of(config.hindsight)
        whose, other = "an LLM", "anthropic"
    if given:
        raise ConfigError(
            f"config.hindsight.{given[0]} is for {whose}, and none looks back: set "
            f"config.hindsight.engine={other}."
        )
    is_of_world = experiment.data.source == "world" and not experiment.imagines_with_llm
    if experiment.rounds and not by_llm and not is_of_world:
        whose = "an LLM" if experiment.imagines_with_llm else experiment.data.source
        raise ConfigError(
            f"config.methods is {config.methods}, which asks for hindsight, but the dialogues are "
            f"those of {whose}, which no embedded world can look back on. Set "
            "config.hindsight.engine=anthropic and config.llm.model, or leave these methods out."
        )


def _check_rounds_of_imagination(experiment: Experiment, config: ConfigDict) -> None:
    """Somebody has to talk with the agents, and these have to speak in a way that they can."""
    learners = [each for each in experiment.methods if each.imagination_rounds]
    if not learners:
        return
    what = f"config.methods is {config.methods}, which asks for rounds of imagination, but"
    if experiment.data.source != "world":
        raise ConfigError(
            f"{what} the dialogues are those of {experiment.data.source}, and nobody is there to "
            "talk with the agents. Leave these methods out."
        )
    if experiment.imagines_with_llm and experiment.evaluation.config.human != "prompted":
        raise ConfigError(
            f"{what} the humans of the dialogues are played by an LLM, and those who would talk "
            "with the agents are not. Set config.evaluation.human=prompted, or leave these methods "
            "out."
        )
    if experiment.machine.coordinator:
        raise ConfigError(
            f"{what} several hosts (config.machine) only train. Leave these methods out, or train "
            "on one host."
        )
    for each in learners:
        with errors_of("imagination.round_decoding"):
            each.method.check_decoding(experiment.decoding_of_rounds(each))


def _changed(section: ConfigDict, kind: type) -> list[str]:
    """Settings of a section whose value is not the default of the dataclass."""
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(kind)}
    return [
        name
        for name, default in defaults.items()
        if name in section and default is not REQUIRED and section[name] != default
    ]


def _check_evaluation(experiment: Experiment, config: ConfigDict) -> None:
    """Checks the agents and humans of the evaluation."""
    evaluation = experiment.evaluation.config
    prompted = evaluation.prompted
    if experiment.evaluation.acts is not None:
        with errors_of("evaluation.gdp_zero"):
            try:
                check_acts(experiment.evaluation.acts)
            except SettingError:
                raise
            except (TypeError, ValueError) as error:
                raise ConfigError(f"config.evaluation.gdp_zero.{error}") from None
    if evaluation.human != "prompted" and (given := set_of(config.evaluation.player)):
        raise ConfigError(
            f"config.evaluation.player.{given[0]} is for an LLM that plays the humans, and none "
            "does: set config.evaluation.human=prompted."
        )
    if experiment.data.source != "world" and experiment.evaluation.llm is not None:
        raise ConfigError(
            f"config.evaluation.{'prompted' if prompted else 'human'}: a run on "
            f"{experiment.data.source} is judged on dialogues that were set apart, where nobody "
            "talks."
        )


def _check_speaking(experiment: Experiment) -> None:
    """Room for words."""
    speaking, network = experiment.speaking, experiment.network
    trains_tokenizer = not experiment.tokenizer.pretrained and not network.pretrained
    vocab_size = experiment.tokenizer.vocab_size
    if trains_tokenizer and vocab_size < FEWEST_TOKENS:
        raise ConfigError(
            f"config.tokenizer.vocab_size is {vocab_size}, but must be at least {FEWEST_TOKENS}: "
            "bytes and markers are tokens in any case."
        )
    if speaking.max_utterance >= network.max_positions:
        raise ConfigError(
            f"config.decoding.max_utterance is {speaking.max_utterance}, which leaves no room for "
            f"a conversation in config.model.max_positions, {network.max_positions}."
        )
