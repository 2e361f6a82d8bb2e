"""Training data of a run: tokenized dialogues and pairs, and checks on both.

The dialogues come from `stages/imagine.py`, regenerated ones and pairs from
`stages/regenerate.py`.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console

from experiments.build import Experiment, Network
from experiments.config import BatchConfig
from experiments.files import version_of
from experiments.hindsight_records import read_hindsight, read_round
from experiments.networks import load_tokenizer
from experiments.own_dialogues import PARTS
from experiments.run_folder import RunError, RunFolder, is_for_training
from experiments.tasks import load_task
from ilql_jax import PreferencePair, Trajectory
from ilql_jax.batching import PackingConfig, lowest_return, packing_for
from ilql_jax.methods import Method
from ilql_jax.models import ModelConfig
from ilql_jax.models.hugging_face.read import find, read_config
from ilql_jax.preferences import packing_for_pairs
from imagination.chat_formats import LossOn
from imagination.dialogue import Dialogue, place_of, read_dialogues
from imagination.persona_sampling import PRIOR_PROBABILITY, importance_weights
from imagination.tokenization import DialogueTokenizer

CUT_OFF = 0.01  # share of utterances longer than an agent may speak that is worth telling


def check_dialogues(
    experiment: Experiment, folder: RunFolder, dialogues: list[Dialogue], console: Console
) -> DialogueTokenizer:
    """Returns the run's tokenizer, after checking that all dialogues can be learned from.

    Raises:
        RunError: A dialogue is too long, of another task, has the id of another or no part, or the
            probability of its persona is asked for and unknown; or none is learned from, or all
            have the reward 0.
        TrajectoryError: It breaks another rule.
    """
    check_words(experiment.network, dialogues)
    _check_records(experiment, folder, dialogues)
    if folder.tokenizer.exists():
        tokenizer = load_tokenizer(folder)
    else:
        tokenizer = make_tokenizer(experiment, [d for d in dialogues if is_for_training(d)])
        for note in tokenizer.notes(dialogues):
            console.print(note, markup=False, highlight=False)
    if experiment.data.importance_weights:
        _tell_weights([d for d in dialogues if is_for_training(d)], console)
    trajectories = tokenizer.trajectories(
        dialogues,
        loss_on=experiment.data.loss_on,
        with_ends=any(each.method.predicts_observations for each in experiment.methods),
    )
    if experiment.looks_ahead:
        tokenizer.replies(experiment.speaking.max_utterance)  # refused before the training
    _check_rewards(experiment, trajectories)
    check_lengths(experiment.network, trajectories, experiment.speaking.max_utterance, console)
    packing(experiment.batches, experiment.network.max_positions, trajectories)
    return tokenizer


def _tell_weights(dialogues: list[Dialogue], console: Console) -> None:
    """Tells what is left of the data when it is weighted to the prior of its personas."""
    weights = _weights_of(dialogues)
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    console.print(
        f"Weighted to the prior of their personas by {weights.min():.2g} to {weights.max():.2g}, "
        f"{len(dialogues):,} dialogues are worth {effective:,.0f}."
    )


def _weights_of(dialogues: list[Dialogue]) -> Float[np.ndarray, " dialogues"]:
    weights = importance_weights(dialogues)
    if weights is None:
        unknown = next(d for d in dialogues if not d.source.get(PRIOR_PROBABILITY, 0) > 0)
        raise RunError(
            f"dialogue {unknown.id}: source.{PRIOR_PROBABILITY} is "
            f"{unknown.source.get(PRIOR_PROBABILITY)}, but must be above 0 where dialogues are "
            "weighted by it. Set it in every dialogue, or config.data.importance_weights=false."
        )
    return weights


def _check_rewards(experiment: Experiment, trajectories: list[Trajectory]) -> None:
    """Raises `RunError` if values would have nothing to learn."""
    names = [each.name for each in experiment.methods if each.learns_values]
    if names and not any(each.rewards.any() for each in trajectories):
        raise RunError(
            f"all {len(trajectories):,} dialogues have the reward 0, so {', '.join(names)} would "
            "learn no values. Rate the dialogues, or leave these out of config.methods."
        )


def _check_records(experiment: Experiment, folder: RunFolder, dialogues: list[Dialogue]) -> None:
    """Raises `RunError` for dialogues that do not belong together, or are all of one part."""
    is_split = experiment.data.source != "world"
    # A user's own dialogues call their task as they like.
    own_task = "" if experiment.data.source == "jsonl" else load_task(experiment, folder).name
    first: dict[str, int] = {}
    counts: Counter[str] = Counter()
    for index, dialogue in enumerate(dialogues):
        part = dialogue.source.get("part", "train")
        problem = ""
        if dialogue.id in first:
            other = place_of(folder.dialogues, first[dialogue.id])
            problem = f"field 'id': {dialogue.id!r} is the id of {other} too. Give each its own"
        elif own_task and dialogue.task not in ("", own_task):
            problem = (
                f"field 'task': {dialogue.task!r}, but this run is about {own_task!r}. Take out "
                "what is of another task"
            )
        elif part not in PARTS:
            problem = f"field 'source.part': {part!r}, but must be {' or '.join(PARTS)}"
        if problem:
            raise RunError(f"{place_of(folder.dialogues, index)}, {problem}.")
        first[dialogue.id] = index
        counts[part] += 1
    for part in PARTS if is_split else ("train",):
        if not counts[part]:
            raise RunError(
                f"{folder.dialogues}: none of the {len(dialogues):,} dialogues is in the part "
                f"{part!r} (field 'source.part'). Mark some; or delete the file, and it is made "
                "again."
            )


def check_words(network: Network, dialogues: list[Dialogue]) -> None:
    """Raises `RunError` for a dialogue that cannot fit whatever its tokens are.

    Before a tokenizer is trained on it, which takes minutes for a text of megabytes. A token stays
    within a word, and hardly any has 256 characters.
    """
    for dialogue in dialogues:
        texts = [turn.text for turn in dialogue.turns]
        least = max(sum(len(x.split()) for x in texts), sum(map(len, texts)) // 256)
        if least > network.max_positions:
            raise RunError(
                f"{dialogue.id}: {least:,} tokens or more do not fit in the context of "
                f"{network.max_positions}. {_way_out(network, least)}"
            )


def check_lengths(
    network: Network, trajectories: list[Trajectory], max_utterance: int, console: Console
) -> None:
    """Checks that dialogues fit in the context, and tells of utterances longer than an agent's.

    Raises:
        RunError: A dialogue that is too long; the message says how much room they all need.
    """
    longest = max(trajectories, key=lambda trajectory: len(trajectory.tokens))
    needed, context = len(longest.tokens), network.max_positions
    if needed > context:
        count = sum(len(trajectory.tokens) > context for trajectory in trajectories)
        raise RunError(
            f"{longest.name}: {needed} tokens do not fit in the context of {context}; {count:,} of "
            f"{len(trajectories):,} dialogues are too long. {_way_out(network, needed)}"
        )
    utterances = np.concatenate([_utterance_lengths(trajectory) for trajectory in trajectories])
    cut_off = np.mean(utterances > max_utterance)
    if cut_off > CUT_OFF:
        console.print(
            f"{cut_off:.0%} of what agents say in the dialogues is longer than "
            f"config.decoding.max_utterance, {max_utterance} tokens, at which agents will be cut "
            f"off in conversation; the longest takes {utterances.max()}."
        )


def _way_out(network: Network, needed: int) -> str:
    """End of a message about dialogues that are too long."""
    limit = _most_positions(network)
    if limit is not None and limit < needed:
        return f"Shorten or drop them: {network.pretrained} reads at most {limit}."
    return f"Set config.model.max_positions to {needed} or more; or shorten or drop them."


def _most_positions(network: Network) -> int | None:
    """Longest context of a pretrained network; None = a fresh one, made for any length."""
    if not network.pretrained:
        return None
    return read_config(find(network.pretrained, weights=False)).max_positions


def _utterance_lengths(trajectory: Trajectory) -> np.ndarray:
    """Tokens of each of the agent's utterances, with the one that ends it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trajectory.is_action, [False]])))
    return edges[1::2] - edges[::2]


def make_tokenizer(experiment: Experiment, dialogues: list[Dialogue]) -> DialogueTokenizer:
    """Loads the tokenizer that the settings name, or trains one on these dialogues."""
    settings = experiment.tokenizer
    where: str | Path = settings.pretrained
    if not where and experiment.network.pretrained:
        where = find(experiment.network.pretrained, weights=False)
    if not where:
        return DialogueTokenizer.train(dialogues, settings.vocab_size)
    date = datetime.date.fromisoformat(settings.date)
    return DialogueTokenizer.load(where, settings.opening, date)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Trajectories that a method learns from, with rewards of unit spread.

    The spread is that of the original dialogues, whatever is learned from beside them: so all
    methods of a run have the same settings.
    """

    trajectories: list[Trajectory]
    tokenizer: DialogueTokenizer
    reward_scale: float

    @classmethod
    def load(
        cls,
        folder: RunFolder,
        max_positions: int,
        rounds: int = 0,
        loss_on: LossOn = "agent",
        importance_weights: bool = False,
        with_ends: bool = False,
        imagined: Sequence[Dialogue] = (),
    ) -> TrainingData:
        """Tokenizes the originals, and those of rounds of hindsight or imagination that fit.

        Args:
            folder: Folder of the run.
            max_positions: Longest dialogue that the network reads.
            rounds: Number of rounds of hindsight.
            loss_on: Turns that are learned from.
            importance_weights: Weights dialogues to the prior of their personas.
            with_ends: The network learns when dialogues end.
            imagined: Conversations of rounds of imagination.

        Raises:
            RunError: Weights are asked for, and an original does not say how probable its persona
                is.
        """
        originals = [d for d in read_dialogues(folder.dialogues) if is_for_training(d)]
        tokenizer = load_tokenizer(folder)
        scale = reward_scale(originals)
        made = regenerated(folder, tokenizer, rounds, scale, loss_on, with_ends)
        trajectories = tokenizer.trajectories([*originals, *imagined], scale, loss_on, with_ends)
        if importance_weights:
            weights = _weights_of([*originals, *imagined])
            trajectories = [
                dataclasses.replace(trajectory, weight=float(weight))
                for trajectory, weight in zip(trajectories, weights, strict=True)
            ]
        added = [*trajectories[len(originals) :], *made]
        trajectories = trajectories[: len(originals)]
        trajectories += [each for each in added if fits(each, max_positions)]
        return cls(trajectories, tokenizer, scale)


def load_once(folder: RunFolder, max_positions: int, rounds: int, *how: Any) -> TrainingData:
    """`TrainingData.load` without conversations of rounds of imagination, and the same once more
    for the next training in this process, as long as the files are the same."""
    files = [folder.dialogues, folder.tokenizer]
    files += [folder.hindsight_round(number) for number in range(1, rounds + 1)]
    return _load_once(tuple(map(version_of, files)), folder.path, max_positions, rounds, *how)


@functools.lru_cache(maxsize=1)
def _load_once(versions: tuple, path: Path, *arguments: Any) -> TrainingData:
    return TrainingData.load(RunFolder(path), *arguments)


forget = _load_once.cache_clear  # gives the memory back


def regenerated(
    folder: RunFolder,
    tokenizer: DialogueTokenizer,
    rounds: int,
    scale: float = 1.0,
    loss_on: LossOn = "agent",
    with_ends: bool = False,
) -> list[Trajectory]:
    """The dialogues of the first rounds of hindsight."""
    made = (read_round(folder, number) for number in range(1, rounds + 1))
    dialogues = [d for dialogues in made for d in dialogues if is_for_training(d)]
    return tokenizer.trajectories(dialogues, scale, loss_on, with_ends)


def fits(trajectory: Trajectory, max_positions: int) -> bool:
    """True if a dialogue that was added fits: too-long ones are dropped, not an error."""
    return len(trajectory.tokens) <= max_positions


def reward_scale(dialogues: list[Dialogue]) -> float:
    """One over the standard deviation of the returns, so that settings fit any rating scale."""
    spread = float(np.std([d.total_reward for d in dialogues if d.reward is not None]))
    return 1.0 / spread if spread > 1e-6 else 1.0


def start_value(
    method: Method, network: ModelConfig, batches: BatchConfig, trajectories: list[Trajectory]
) -> float:
    """Value that a fresh network's value heads stand for, in the unit of the trajectories' rewards.

    The lowest return where that is below 0, so that what was never tried does not look best; else
    0, which is as low. 0 for a network whose values are probabilities.
    """
    if not method.learns_values or network.value_heads == "probabilities":
        return 0.0
    by_token = method.values_every_token
    discount = batches.token_discount if by_token else batches.utterance_discount
    return min(0.0, lowest_return(trajectories, by_token, discount))


def packing(
    batches: BatchConfig,
    max_positions: int,
    trajectories: list[Trajectory],
    baseline: float = 0.0,
) -> PackingConfig:
    """Shape of the batches of these trajectories; `baseline` is that of `PackingConfig`."""
    return packing_for(
        trajectories,
        batches.batch_rows,
        max_positions,
        batches.token_discount,
        batches.utterance_discount,
        baseline,
    )


def preference_pairs(
    folder: RunFolder, tokenizer: DialogueTokenizer, max_positions: int
) -> tuple[list[PreferencePair], str]:
    """Pairs utterances that were put better in the first round with those that were said there.

    Which is better is the controller's word; how the dialogues ended is not asked. Pairs that are
    too long are left out, and those whose difference the tokenizer does not see.

    Returns:
        The pairs, and in words what was left out, or nothing.

    Raises:
        RunError: No pair is left.
    """
    originals = read_dialogues(folder.dialogues)
    found = read_hindsight(folder.path, originals).rounds[0].pairs
    turns = [made.source["turn"] for _, made in found]
    rejected, chosen = (
        tokenizer.utterances(list(zip(dialogues, turns, strict=True)))
        for dialogues in zip(*found, strict=True)
    )
    pairs = [PreferencePair(*halves) for halves in zip(chosen, rejected, strict=True)]
    differing = [pair for pair in pairs if not pair.says_the_same]
    fitting = [
        pair
        for pair in differing
        if fits(pair.chosen, max_positions) and fits(pair.rejected, max_positions)
    ]
    counts = {
        "longer than config.model.max_positions": len(differing) - len(fitting),
        "the same to the tokenizer": len(pairs) - len(differing),
    }
    left_out = ", ".join(f"{count:,} {why}" for why, count in counts.items() if count)
    left_out = left_out and f"left out: {left_out}"
    if not fitting:
        raise RunError(
            f"none of the {len(pairs):,} pairs of utterances of {folder.hindsight_round(1)} can be "
            f"learned from ({left_out}). Raise config.model.max_positions, or leave out "
            "the methods that learn from pairs."
        )
    return fitting, left_out


def packing_of_pairs(
    pairs: list[PreferencePair], rows_of_pairs: int, max_positions: int
) -> PackingConfig:
    """Shape of the batches of pairs: rows of twice the length, so that both halves of any fit."""
    return packing_for_pairs(pairs, rows_of_pairs, 2 * max_positions)
