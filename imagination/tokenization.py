"""Dialogues -> `Trajectory`, with a BPE of our own or any Hugging Face tokenizer.

A dialogue is laid out as `<human> words <agent> words <end> <human> words ...`. The agent's words
and the `<end>` after them are its actions; the state before an utterance is the `<agent>` marker,
and the rating lies on the last `<end>`. Whether a token is an action is known from who spoke, never
guessed from token ids.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from ilql_jax.trajectory import Trajectory
from imagination.dialogue import Dialogue, DialogueError, Turn

PAD, HUMAN, AGENT, END = MARKERS = ("<pad>", "<human>", "<agent>", "<end>")


class DialogueTokenizer:
    """Words to tokens and back, with markers for who speaks.

    Args:
        tokenizer: A fast Hugging Face tokenizer; markers it lacks are added to it.
    """

    def __init__(self, tokenizer):
        missing = [marker for marker in MARKERS if marker not in tokenizer.get_vocab()]
        if missing:
            # Beside those that it has: they stay special.
            tokenizer.add_tokens([tokenizers.AddedToken(m, special=True) for m in missing], True)
        self._tokenizer = tokenizer
        # What people type must not be able to speak for the other side.
        self._backend.encode_special_tokens = True
        self.pad, self.human, self.agent, self.end = tokenizer.convert_tokens_to_ids(list(MARKERS))
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
                f"no tokenizer {str(name_or_folder)!r}: give a folder with tokenizer.json or a "
                f"name on the Hugging Face hub ({str(error).splitlines()[0]})."
            ) from None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes it in Hugging Face's format."""
        self._tokenizer.save_pretrained(str(folder))

    def writable(self) -> Bool[np.ndarray, "vocab"]:
        """True for tokens an agent may write: words and `<end>`, no other special token."""
        allowed = np.ones(self.vocab_size, bool)
        special = [i for i, t in self._tokenizer.added_tokens_decoder.items() if t.special]
        allowed[[*special, *self._tokenizer.all_special_ids]] = False
        allowed[self.end] = True
        return allowed

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text; markers inside a text are words like any other."""
        return [e.ids for e in self._backend.encode_batch(list(texts), add_special_tokens=False)]

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
        texts = [turn.text for turns in conversations for turn in turns]
        encoded = iter(self.encode_texts(texts))
        result = []
        for turns in conversations:
            pieces = [self._turn_tokens(turn.speaker, next(encoded)) for turn in turns]
            while max_length and pieces and 1 + sum(map(len, pieces)) > max_length:
                pieces.pop(0)
            tokens = [token for piece in pieces for token in piece]
            result.append(np.asarray([*tokens, self.agent], np.int32))
        return result

    def _turn_tokens(self, speaker: str, words: list[int]) -> list[int]:
        return [self.human, *words] if speaker == "human" else [self.agent, *words, self.end]

    def decode(self, tokens: Int[np.ndarray, "time"]) -> str:
        """The words of an utterance, without markers."""
        words = [int(t) for t in tokens if t not in (self.pad, self.human, self.agent, self.end)]
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
        encoded = iter(self.encode_texts([t.text for d in dialogues for t in d.turns]))
        return [self._trajectory(dialogue, encoded, reward_scale) for dialogue in dialogues]

    def utterances(self, turns: Sequence[tuple[Dialogue, int]]) -> list[Trajectory]:
        """Single utterances of the agent, each with all that was said before it; without rewards.

        Args:
            turns: Dialogue and index of the turn in it, counted from 0; the turn is the agent's.
        """
        contexts = self.contexts([dialogue.turns[:turn] for dialogue, turn in turns])
        said = self.encode_texts([dialogue.turns[turn].text for dialogue, turn in turns])
        result = []
        for (dialogue, turn), context, words in zip(turns, contexts, said, strict=True):
            tokens = np.asarray([*context, *words, self.end], np.int32)
            result.append(
                Trajectory(
                    tokens=tokens,
                    is_action=np.arange(len(tokens)) >= len(context),
                    rewards=np.zeros(len(tokens), np.float32),
                    name=f"turn {turn} of dialogue {dialogue.id}",
                )
            )
        return result

    def _trajectory(self, dialogue: Dialogue, encoded, reward_scale: float) -> Trajectory:
        tokens: list[int] = []
        is_action: list[bool] = []
        rewards: list[float] = []
        last_action = 0
        for turn in dialogue.turns:
            piece = self._turn_tokens(turn.speaker, next(encoded))
            tokens += piece
            by_agent = turn.speaker == "agent"
            is_action += [False] + [by_agent] * (len(piece) - 1)
            rewards += [0.0] * len(piece)
            if by_agent:
                last_action = len(tokens) - 1
                rewards[last_action] = turn.reward * reward_scale
        rewards[last_action] += dialogue.reward * reward_scale
        # What the human says after the agent's last word changes nothing that is learned.
        length = last_action + 1 if dialogue.terminal else len(tokens)
        return Trajectory(
            tokens=np.asarray(tokens[:length], np.int32),
            is_action=np.asarray(is_action[:length], bool),
            rewards=np.asarray(rewards[:length], np.float32),
            terminal=dialogue.terminal,
            name=f"dialogue {dialogue.id}",
        )

    @property
    def _backend(self) -> tokenizers.Tokenizer:
        return self._tokenizer.backend_tokenizer


def save_once(tokenizer: DialogueTokenizer, folder: Path) -> None:
    """Saves whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    tokenizer.save(partial)
    partial.replace(folder)
