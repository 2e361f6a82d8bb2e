"""Judges networks on dialogues that were set apart, where there is no human to talk with.

Two questions: how likely are the words of real agents under the policy (perplexity; before the
training too, if it began with a pretrained network), and do the values foretell how a dialogue
really ended, at several points of it (AUROC of success, calibration) and at each of its turns (rank
correlation, error)? And for the eye, at a few turns, what each network says in the place of the
real agent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from rich.console import Console

from experiments.build import Experiment
from experiments.evaluation.returns import discount_of, returns_by_turn
from experiments.evaluation.statistics import Interval, bootstrap_auroc, calibration_bins
from experiments.evaluation.summary import (
    Bounds,
    CalibrationBin,
    Estimate,
    Heldout,
    HeldoutPolicy,
    Moment,
    PredictionPoint,
    Reply,
    Success,
    TurnPrediction,
)
from experiments.evaluation.values_by_turn import values_by_turn
from experiments.files import read_or_none
from experiments.looks import look_of
from experiments.networks import (
    chosen_decoding,
    load_agent,
    load_tokenizer,
    pretrained_start,
    trained_network,
    units,
    value_unit,
)
from experiments.run_folder import RunFolder, Unit
from experiments.tasks import load_task
from ilql_jax import sharding
from ilql_jax.batching import packing_for
from ilql_jax.checkpoint import read_metadata
from ilql_jax.methods import Method
from ilql_jax.models import ModelConfig, Params
from ilql_jax.models.lora import merge_adapters
from ilql_jax.scoring import Scores, score
from imagination.dialogue import Dialogue, read_dialogues
from imagination.speakers import Conversation
from imagination.task import Task

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # fractions of the agent's utterances in a dialogue
TOGETHER_FROM = 4  # turn of the agent, from which on all are one row: real dialogues may be long

Returns = Sequence[Float[np.ndarray, " turns"]]  # of dialogues, from each of the agent's turns on


def run(experiment: Experiment, folder: RunFolder, console: Console) -> None:
    """Writes `heldout.json`, unless it is there for the same trainings and as many replies."""
    wanted = experiment.evaluation.config.sample_replies
    before = read_or_none(folder.heldout, lambda: Heldout.read(folder.heldout), console)
    if before is not None:
        judged = before.methods
        if before.sample_replies == wanted and {
            name: len(each.per_seed) for name, each in judged.items()
        } == dict.fromkeys([each.name for each in experiment.methods], experiment.run.seeds):
            return
    dialogues = read_dialogues(folder.dialogues)
    parts = {
        part: [d for d in dialogues if d.source.get("part") == part] for part in ("train", "test")
    }
    console.print(f"Judging on {len(parts['test'])} dialogues that were set apart.")
    task, tokenizer = load_task(experiment, folder), load_tokenizer(folder)
    found = {each.name: discount_of(each.method, experiment.batches) for each in experiment.methods}
    discounts = {name: discount for name, discount in found.items() if discount is not None}
    scores = {u: _score_trained(experiment, folder, u, parts["test"]) for u in units(experiment)}
    ended, of_ended = _ended(parts["test"], scores, console)
    returns = {
        name: returns_by_turn(ended, discount, tokenizer)
        for name, discount in discounts.items()
        if ended
    }
    result = Heldout(
        task=dialogues[0].task or task.name,  # dialogues of a user need not say it
        sizes={part: len(group) for part, group in parts.items()},
        success=success_of(task, parts["test"]),
        methods={
            each.name: _policy_quality(scores, each.name, experiment.method_by_name)
            for each in experiment.methods
        },
        pretrained_perplexity=_pretrained_perplexity(experiment, folder, parts["test"]),
        discounts=discounts,
        value_prediction={
            name: value_prediction(of_ended, name, ended, own, task.success_reward, experiment.seed)
            for name, own in returns.items()
        },
        by_turn={name: by_turn(of_ended, name, ended, own) for name, own in returns.items()},
        sample_replies=wanted,
        moments=_moments(experiment, folder, choose_moments(parts["test"], wanted)),
    )
    result.write(folder.heldout)


def _ended(
    dialogues: Sequence[Dialogue], scores: Mapping[Unit, Sequence[Scores]], console: Console
) -> tuple[list[Dialogue], dict[Unit, list[Scores]]]:
    """Dialogues that were not cut off, with their scores: of others the outcome is not known."""
    places = [place for place, dialogue in enumerate(dialogues) if dialogue.terminal]
    if len(places) < len(dialogues):
        console.print(
            f"{len(dialogues) - len(places)} of these were cut off (terminal: false), so that "
            "values are not held against their outcomes."
        )
    kept = {unit: [group[place] for place in places] for unit, group in scores.items()}
    return [dialogues[place] for place in places], kept


def _score_trained(
    experiment: Experiment, folder: RunFolder, unit: Unit, dialogues: list[Dialogue]
) -> list[Scores]:
    """Scores the dialogues with the network of a unit; values are in the task's unit."""
    shape, params = trained_network(experiment, folder, unit)
    return _score(experiment, folder, shape, params, *value_unit(folder, unit), dialogues)


def _pretrained_perplexity(
    experiment: Experiment, folder: RunFolder, dialogues: list[Dialogue]
) -> float | None:
    """Perplexity before training; None where training began with a fresh network."""
    unit = units(experiment)[0]
    shape = ModelConfig.from_dict(read_metadata(folder.checkpoints(unit))["model"])
    mesh = sharding.mesh_to_use(experiment.mesh)
    start = pretrained_start(experiment.network, shape, experiment.seed, mesh)
    if start is None:
        return None
    shape, params = merge_adapters(shape, start())
    return _perplexity(_score(experiment, folder, shape, params, 1.0, 0.0, dialogues))


def _score(
    experiment: Experiment,
    folder: RunFolder,
    shape: ModelConfig,
    params: Params,
    scale: float,
    baseline: float,
    dialogues: list[Dialogue],
) -> list[Scores]:
    """Scores the dialogues with a network whose values have this unit (see `value_unit`)."""
    trajectories = load_tokenizer(folder).trajectories(dialogues, scale)
    packing = packing_for(
        trajectories, experiment.batches.batch_rows, experiment.network.max_positions
    )
    mesh = sharding.mesh_to_use(experiment.mesh)  # as the parameters lie
    return [
        Scores(s.log_prob, (s.v + baseline) / scale, (s.q + baseline) / scale)
        for s in score(trajectories, shape, params, packing, mesh)
    ]


def _policy_quality(
    scores: dict[Unit, list[Scores]], method: str, methods: Mapping[str, Method]
) -> HeldoutPolicy:
    """Perplexity per agent token."""
    per_seed = tuple(_perplexity(group) for unit, group in scores.items() if unit.method == method)
    return HeldoutPolicy(look_of(method, methods), float(np.mean(per_seed)), per_seed)


def _perplexity(scores: list[Scores]) -> float:
    return float(np.exp(-np.concatenate([s.log_prob for s in scores]).mean()))


# --- replies for the eye ------------------------------------------------------------------------


def choose_moments(dialogues: list[Dialogue], count: int) -> list[tuple[Dialogue, int]]:
    """Chooses turns of the agent to set replies beside, by a rule that looks at no words.

    Dialogues are taken at equal distances, the first turns of the first of them and the last of the
    last. A turn of the agent counts if the human speaks before it.

    Args:
        dialogues: That were set apart.
        count: Number of turns, one a dialogue; fewer where there are not so many dialogues.

    Returns:
        Dialogues, each with the number of a turn of its agent.
    """
    answers = {
        index: [
            turn
            for turn in range(1, len(dialogue.turns))
            if dialogue.turns[turn].speaker == "agent"
            and dialogue.turns[turn - 1].speaker == "human"
        ]
        for index, dialogue in enumerate(dialogues)
    }
    able = [index for index, turns in answers.items() if turns]
    count = min(count, len(able))
    chosen = [able[place * len(able) // count] for place in range(count)]
    return [
        (dialogues[index], answers[index][place * len(answers[index]) // count])
        for place, index in enumerate(chosen)
    ]


def _moments(
    experiment: Experiment, folder: RunFolder, moments: list[tuple[Dialogue, int]]
) -> tuple[Moment, ...]:
    """Replies of each method's first training, by the first of its decodings."""
    methods = experiment.methods if moments else ()
    replies = {
        each.name: _replies(experiment, folder, Unit(each.name, 0), moments) for each in methods
    }
    return tuple(
        Moment(dialogue.id, turn, {name: given[place] for name, given in replies.items()})
        for place, (dialogue, turn) in enumerate(moments)
    )


def _replies(
    experiment: Experiment, folder: RunFolder, unit: Unit, moments: list[tuple[Dialogue, int]]
) -> list[Reply]:
    decoding = chosen_decoding(experiment.method(unit.method), folder, unit)
    agent = load_agent(experiment, folder, unit, decoding, batch_size=len(moments))
    conversations = [
        Conversation(said.id, {}, experiment.seed, list(said.turns[:turn]), system=said.system)
        for said, turn in moments
    ]
    return [
        Reply(each.text, str(decoding), each.annotations.get("q"), each.annotations.get("v"))
        for each in agent.respond(conversations)
    ]


# --- values -------------------------------------------------------------------------------------


def success_of(task: Task, dialogues: list[Dialogue]) -> Success:
    """The task's bar for success, and how many of these dialogues reach it."""
    share = np.mean([d.total_reward >= task.success_reward for d in dialogues])
    return Success(task.success, task.success_reward, float(share))


def value_prediction(
    scores: dict[Unit, list[Scores]],
    method: str,
    dialogues: list[Dialogue],
    returns: Returns,
    success_reward: float,
    seed: int,
) -> tuple[PredictionPoint, ...]:
    """AUROC and calibration of V and Q along the dialogues; values are means over trainings.

    Args:
        scores: Those of the dialogues by each training of all methods, in the rewards' unit.
        method: Its trainings are looked at.
        dialogues: Rated dialogues.
        returns: Discounted returns of these (`returns_by_turn`).
        success_reward: Reward from which a dialogue succeeded.
        seed: Seed of the intervals.
    """
    of_method = [group for unit, group in scores.items() if unit.method == method]
    succeeded = np.array([d.total_reward >= success_reward for d in dialogues])
    points = []
    for point in POINTS:
        v = np.mean([[_at(s.v, point) for s in group] for group in of_method], axis=0)
        q = np.mean([[_at(s.q, point) for s in group] for group in of_method], axis=0)
        outcomes = np.array([_at(own, point) for own in returns])
        bins = (CalibrationBin(**each) for each in calibration_bins(q, outcomes, 5))
        of_v, of_q = (_existing(bootstrap_auroc(succeeded, x, seed=seed)) for x in (v, q))
        points.append(PredictionPoint(point, *of_v, *of_q, tuple(bins)))
    return tuple(points)


def by_turn(
    scores: dict[Unit, list[Scores]], method: str, dialogues: list[Dialogue], returns: Returns
) -> tuple[TurnPrediction, ...]:
    """Rank correlation and error of the values at each turn, over dialogues and trainings.

    Arguments are those of `value_prediction`.
    """
    noted = [
        _with_values(dialogue, of_dialogue, unit.seed, place)
        for unit, group in scores.items()
        if unit.method == method
        for place, (dialogue, of_dialogue) in enumerate(zip(dialogues, group, strict=True))
    ]
    by_id = {dialogue.id: own for dialogue, own in zip(dialogues, returns, strict=True)}
    return tuple(
        TurnPrediction(
            each.turn,
            each.and_later,
            each.humans,
            *map(_estimate, (each.v, each.q, each.error)),
            each.spread,
        )
        for each in values_by_turn(noted, by_id, TOGETHER_FROM)
    )


def _with_values(dialogue: Dialogue, scores: Scores, training: int, place: int) -> Dialogue:
    """The dialogue, in which the agent notes its values, as in a conversation."""
    values = iter(zip(scores.v.tolist(), scores.q.tolist(), strict=True))
    turns = tuple(
        dataclasses.replace(turn, annotations=dict(zip("vq", next(values), strict=True)))
        if turn.speaker == "agent"
        else turn
        for turn in dialogue.turns
    )
    return dataclasses.replace(dialogue, turns=turns, source={"seed": training, "episode": place})


def _estimate(found: Interval) -> Estimate | None:
    """None where nothing varies, so that there is no correlation."""
    if np.isnan(found.mean):
        return None
    return Estimate(found.mean, found.bounds)


def _existing(auroc: Interval) -> tuple[float | None, Bounds | None]:
    """Value and bounds; None where all dialogues succeed or all fail, so that there is no AUROC."""
    return None if np.isnan(auroc.mean) else auroc.mean, auroc.bounds


def _at(values: Float[np.ndarray, " n"], fraction: float) -> float:
    """The value at a fraction of the way from the first to the last."""
    return float(values[round(fraction * (len(values) - 1))])
