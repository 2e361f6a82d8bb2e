"""Validation during a training: the agent as it is then talks with simulated humans.

The same humans at every checkpoint, and of every method and seed; others than those that ways of
choosing words are tried on, and than those of the test.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from experiments.build import Experiment
from experiments.evaluation.environment import CURVE_SEED, load_environment
from experiments.networks import agent_of
from experiments.run_folder import RunFolder, Unit
from ilql_jax.models import ModelConfig, Params
from ilql_jax.models.lora import merge_adapters
from ilql_jax.policy_checks import learned_values
from imagination.simulation import POPULATIONS, SimulatedHuman
from imagination.speakers import converse


def validation(
    experiment: Experiment, folder: RunFolder, unit: Unit, shape: ModelConfig
) -> Callable[[int, Params], dict[str, float]] | None:
    """The mean reward with each population, as a function of the step and the parameters.

    Of the first decoding that the method's settings name (which is best is tried at the end), and
    of the policy alone at its temperature as long as the values have not learned anything. None
    where nobody is asked for, where there are no simulated humans to talk with, and on a mesh.
    """
    episodes = experiment.evaluation.config.curve_episodes
    has_humans = experiment.data.source == "world" and experiment.evaluation.config.human == "world"
    if not episodes or not has_humans or experiment.is_on_mesh:
        return None
    environment = load_environment(experiment, folder)
    [decoding, *_] = experiment.method(unit.method).decodings
    human = SimulatedHuman(environment.world)

    def validate(step: int, params: Params) -> dict[str, float]:
        how = decoding if learned_values(params) else decoding.without_values
        agent = agent_of(experiment, folder, unit, *merge_adapters(shape, params), how)
        rewards = {}
        for population in POPULATIONS:
            conversations = environment.humans(population, episodes, CURVE_SEED + experiment.seed)
            played = converse(agent, human, conversations, environment.task)
            rewards[population] = float(np.mean([dialogue.reward for dialogue in played]))
        return rewards

    return validate
