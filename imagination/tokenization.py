"""Dialogues -> `Trajectory`, with a BPE of our own or any Hugging Face tokenizer.

How a dialogue is laid out is in `formats.py`: by the tokenizer's chat template, or else with the
markers `<human> words <agent> words <end> <human> words ...`. The agent's words and the token that
ends them are its actions; the state before an utterance is what invites the agent to speak (the
`<agent>` marker), and the rating lies on the last end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from ilql_jax.trajectory import Trajectory
from imagination.chat_formats import (
    AGENT,
    END,
    HUMAN,
    MARKER_TEMPLATE,
    MARKERS,
    NOBODY,
    PAD,
    Format,
    LaidOut,
    MarkerFormat,
    TemplateFormat,
)
from imagination.dialogue import Dialogue, DialogueError, Turn


class DialogueTokenizer:
    """Words to tokens and back, with who speaks.

    Args:
        tokenizer: A fast Hugging Face tokenizer. Without chat template it gets our markers, as far
            as it lacks them; one that has them all is one of ours, and keeps to them.

    Attributes:
        vocab_size: Number of tokens.
        end: Token that ends the agent's utterances.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._format = _format(tokenizer)
        self.end = self._format.end
        self.vocab_size = len(tokenizer)

    @classmethod
    def train(
        cls, dialogues: Iterable[Dialogue], vocab_size: int, min_frequency: int = 2
    ) -> DialogueTokenizer:
        """A byte-level BPE of the dialogues' own words (at most `vocab_size` tokens)."""
        from transformers import PreTrainedTokenizerFast

        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(MARKERS),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator((turn.text for d in dialogues for turn in d.turns), trainer)
        return cls(
            PreTrainedTokenizerFast(
                tokenizer_object=bpe, pad_token=PAD, additional_special_tokens=[HUMAN, AGENT, END]
            )
        )

    @classmethod
    def load(cls, name_or_folder: str | os.PathLike[str]) -> DialogueTokenizer:
        """A Hugging Face tokenizer by name or folder; also what `save` wrote.

        Raises:
            DialogueError: It cannot be found or read.
        """
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(str(name_or_folder), use_fast=True))
        except (OSError, ValueError) as error:
            raise DialogueError(
                f"no tokenizer that can be used in {str(name_or_folder)!r}: "
                f"{str(error).splitlines()[0].rstrip('.')}. Give a folder with tokenizer.json or a "
                "name on the Hugging Face hub."
            ) from None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes it in Hugging Face's format."""
        self._tokenizer.save_pretrained(str(folder))

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Writes it for use elsewhere: with a chat template also where the markers are ours."""
        self.save(folder)
        if isinstance(self._format, MarkerFormat):
            (Path(folder) / "chat_template.jinja").write_text(MARKER_TEMPLATE, "utf-8")

    def writable(self, vocab_size: int | None = None) -> Bool[np.ndarray, "vocab"]:
        """True for tokens an agent may write: words and the end, no other special token.

        Args:
            vocab_size: Of the network, which may have room for more tokens than there are.
        """
        allowed = np.arange(vocab_size or self.vocab_size) < self.vocab_size
        special = [i for i, t in self._tokenizer.added_tokens_decoder.items() if t.special]
        allowed[[*special, *self._tokenizer.all_special_ids]] = False
        allowed[self.end] = True
        return allowed

    def special_tokens(self) -> dict[str, int]:
        """For the `config.json` of a network that was trained with it."""
        pad = self._tokenizer.pad_token_id
        return {"eos_token_id": self.end, "pad_token_id": self.end if pad is None else pad}

    def context(self, turns: Sequence[Turn], max_length: int | None = None) -> np.ndarray:
        """Tokens of a conversation up to where the agent speaks next, int32 [T].

        Args:
            turns: What was said, the human's turn last.
            max_length: Leaves out the oldest turns until the rest fits.
        """
        return self.contexts([turns], max_length)[0]

    def contexts(
        self, conversations: Sequence[Sequence[Turn]], max_length: int | None = None
    ) -> list[np.ndarray]:
        """`context` of many conversations in one go."""
        found = self._format.contexts(conversations, max_length)
        return [np.asarray(tokens, np.int32) for tokens in found]

    def decode(self, tokens: Int[np.ndarray, "time"]) -> str:
        """The words of an utterance, without markers."""
        words = [int(t) for t in tokens if int(t) not in self._format.silent]
        return self._tokenizer.decode(words, skip_special_tokens=True).strip()

    def trajectories(
        self, dialogues: Sequence[Dialogue], reward_scale: float = 1.0
    ) -> list[Trajectory]:
        """One trajectory per dialogue.

        Args:
            dialogues: Rated dialogues.
            reward_scale: Rewards are multiplied by it.

        Raises:
            DialogueError: A dialogue without rating or without an agent turn.
        """
        for dialogue in dialogues:
            if dialogue.reward is None:
                raise DialogueError(
                    f"dialogue {dialogue.id}: reward is null; offline RL needs a rating for every "
                    "dialogue. Rate it or leave it out."
                )
            if not dialogue.agent_turns:
                raise DialogueError(
                    f"dialogue {dialogue.id}: the agent never speaks, so there is nothing to "
                    "learn from it. Leave it out."
                )
        found = self._format.lay_out([dialogue.turns for dialogue in dialogues])
        return [
            _trajectory(dialogue, laid_out, reward_scale)
            for dialogue, laid_out in zip(dialogues, found, strict=True)
        ]

    def utterances(self, turns: Sequence[tuple[Dialogue, int]]) -> list[Trajectory]:
        """Single utterances of the agent, each with all that was said before it; without rewards.

        Args:
            turns: Dialogue and index of the turn in it, counted from 0; the turn is the agent's.
        """
        found = self._format.lay_out([dialogue.turns[: turn + 1] for dialogue, turn in turns])
        return [
            Trajectory(
                tokens=np.asarray(tokens, np.int32),
                is_action=np.asarray(wrote) == turn,
                rewards=np.zeros(len(tokens), np.float32),
                name=f"turn {turn} of dialogue {dialogue.id}",
            )
            for (dialogue, turn), (tokens, wrote) in zip(turns, found, strict=True)
        ]


def _format(tokenizer) -> Format:
    missing = [marker for marker in MARKERS if marker not in tokenizer.get_vocab()]
    if missing and tokenizer.chat_template:
        return TemplateFormat(tokenizer)
    if missing:
        # Beside those that it has: they stay special.
        tokenizer.add_tokens([tokenizers.AddedToken(m, special=True) for m in missing], True)
    return MarkerFormat(tokenizer)


def _trajectory(dialogue: Dialogue, laid_out: LaidOut, reward_scale: float) -> Trajectory:
    wrote = np.asarray(laid_out.wrote)
    rewards = np.zeros(len(wrote))
    for index, turn in enumerate(dialogue.turns):
        if turn.speaker == "agent":
            rewards[np.flatnonzero(wrote == index)[-1]] = turn.reward * reward_scale
    last_action = np.flatnonzero(wrote != NOBODY)[-1]
    rewards[last_action] += dialogue.reward * reward_scale
    # What the human says after the agent's last word changes nothing that is learned.
    length = last_action + 1 if dialogue.terminal else len(wrote)
    return Trajectory(
        tokens=np.asarray(laid_out.tokens[:length], np.int32),
        is_action=wrote[:length] != NOBODY,
        rewards=rewards[:length].astype(np.float32),
        terminal=dialogue.terminal,
        name=f"dialogue {dialogue.id}",
    )


def save_once(tokenizer: DialogueTokenizer, folder: Path) -> None:
    """Saves whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    tokenizer.save(partial)
    partial.replace(folder)
