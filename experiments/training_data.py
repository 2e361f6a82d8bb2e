"""What a run's networks learn from: tokenized dialogues and pairs, and checks on both.

The dialogues come from `stages/imagine.py`, regenerated ones and pairs from
`stages/regenerate.py`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from experiments import config as settings
from experiments.hindsight_records import read_hindsight
from experiments.run_folder import RunError, RunFolder, is_for_training
from ilql_jax import PreferencePair, Trajectory
from ilql_jax.batching import PackingConfig, packing_for
from ilql_jax.models.hugging_face.read import find, read_config
from ilql_jax.preferences import packing_for_pairs
from imagination.dialogue import Dialogue, iterate_dialogues, read_dialogues
from imagination.tokenization import DialogueTokenizer

CUT_OFF = 0.01  # share of utterances longer than an agent may speak that is worth telling


def check_dialogues(
    config: ConfigDict, folder: RunFolder, dialogues: list[Dialogue], console: Console
) -> DialogueTokenizer:
    """The run's tokenizer, where all dialogues can be learned from as they are.

    Raises:
        RunError: A dialogue is too long. TrajectoryError: it breaks another rule.
    """
    if folder.tokenizer.exists():
        tokenizer = DialogueTokenizer.load(folder.tokenizer)
    else:
        tokenizer = make_tokenizer(config, [d for d in dialogues if is_for_training(d)])
    trajectories = tokenizer.trajectories(dialogues)
    check_lengths(config, trajectories, console)
    packing(config, trajectories)
    return tokenizer


def check_lengths(config: ConfigDict, trajectories: list[Trajectory], console: Console) -> None:
    """Dialogues have to fit in the context, and their utterances should fit in an agent's turn.

    Raises:
        RunError: A dialogue that is too long; the message says how much room they all need.
    """
    longest = max(trajectories, key=lambda trajectory: len(trajectory.tokens))
    needed, context = len(longest.tokens), config.model.max_positions
    if needed > context:
        count = sum(len(trajectory.tokens) > context for trajectory in trajectories)
        longest_there_is = _most_positions(config)
        way_out = f"Set config.model.max_positions to {needed} or more; or shorten or drop them."
        if longest_there_is is not None and longest_there_is < needed:
            way_out = (
                f"Shorten or drop them: {config.model.pretrained} reads at most {longest_there_is}."
            )
        raise RunError(
            f"{longest.name}: {needed} tokens do not fit in the context of {context}; {count:,} of "
            f"{len(trajectories):,} dialogues are too long. {way_out}"
        )
    utterances = np.concatenate([_utterance_lengths(trajectory) for trajectory in trajectories])
    cut_off = np.mean(utterances > config.decoding.max_utterance)
    if cut_off > CUT_OFF:
        console.print(
            f"{cut_off:.0%} of what agents say in the dialogues is longer than "
            f"config.decoding.max_utterance, {config.decoding.max_utterance} tokens, at which "
            f"agents will be cut off in conversation; the longest takes {utterances.max()}."
        )


def _most_positions(config: ConfigDict) -> int | None:
    """What a pretrained network reads at most; None = a fresh one, made for any length."""
    if not config.model.pretrained:
        return None
    return read_config(find(config.model.pretrained, weights=False)).max_positions


def _utterance_lengths(trajectory: Trajectory) -> np.ndarray:
    """Tokens of each of the agent's utterances, with the one that ends it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trajectory.is_action, [False]])))
    return edges[1::2] - edges[::2]


def make_tokenizer(config: ConfigDict, dialogues: list[Dialogue]) -> DialogueTokenizer:
    if config.tokenizer.pretrained:
        return DialogueTokenizer.load(config.tokenizer.pretrained)
    if config.model.pretrained:
        return DialogueTokenizer.load(find(config.model.pretrained, weights=False))
    return DialogueTokenizer.train(dialogues, config.tokenizer.vocab_size)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a method learns from as trajectories, with rewards of unit spread.

    The spread is that of the original dialogues, whatever is learned from beside them: so all
    methods of a run have the same settings.
    """

    trajectories: list[Trajectory]
    tokenizer: DialogueTokenizer
    reward_scale: float

    @classmethod
    def load(cls, config: ConfigDict, folder: RunFolder, rounds: int = 0) -> TrainingData:
        originals = [d for d in read_dialogues(folder.dialogues) if is_for_training(d)]
        tokenizer = DialogueTokenizer.load(folder.tokenizer)
        scale = reward_scale(originals)
        made = regenerated(folder, tokenizer, rounds, scale)
        trajectories = tokenizer.trajectories(originals, scale)
        trajectories += [each for each in made if fits(config, each)]
        return cls(trajectories, tokenizer, scale)


def regenerated(
    folder: RunFolder, tokenizer: DialogueTokenizer, rounds: int, scale: float = 1.0
) -> list[Trajectory]:
    """The dialogues of the first rounds of hindsight."""
    files = (folder.hindsight_round(number) for number in range(1, rounds + 1))
    dialogues = [d for file in files for d in iterate_dialogues(file) if is_for_training(d)]
    return tokenizer.trajectories(dialogues, scale)


def fits(config: ConfigDict, trajectory: Trajectory) -> bool:
    """An original that is too long is an error; one that was played on may well become so."""
    return len(trajectory.tokens) <= config.model.max_positions


def reward_scale(dialogues: list[Dialogue]) -> float:
    """One over the standard deviation of the returns, so that settings fit any rating scale."""
    spread = float(np.std([d.total_reward for d in dialogues if d.reward is not None]))
    return 1.0 / spread if spread > 1e-6 else 1.0


def packing(config: ConfigDict, trajectories: list[Trajectory]) -> PackingConfig:
    return packing_for(
        trajectories,
        config.train.batch_rows,
        config.model.max_positions,
        config.train.token_discount,
        config.train.utterance_discount,
    )


def preference_pairs(
    config: ConfigDict, folder: RunFolder, tokenizer: DialogueTokenizer
) -> tuple[list[PreferencePair], str]:
    """What was put better in the first round, against what was said there.

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
    fitting = [p for p in differing if fits(config, p.chosen) and fits(config, p.rejected)]
    counts = {
        "longer than config.model.max_positions": len(differing) - len(fitting),
        "the same to the tokenizer": len(pairs) - len(differing),
    }
    left_out = ", ".join(f"{count:,} {why}" for why, count in counts.items() if count)
    left_out = left_out and f"left out: {left_out}"
    if not fitting:
        raise RunError(
            f"none of the {len(pairs):,} pairs of utterances of {folder.hindsight_round(1)} can be "
            f"learned from ({left_out}). Raise config.model.max_positions, or leave out dpo."
        )
    return fitting, left_out


def packing_of_pairs(config: ConfigDict, pairs: list[PreferencePair]) -> PackingConfig:
    """Half as many rows of twice the length: both halves of any pair fit."""
    rows = settings.rows_of_pairs(config)
    return packing_for_pairs(pairs, rows, 2 * config.model.max_positions)
