"""Dialogues -> `Trajectory`, with a BPE of our own or any Hugging Face tokenizer.

The layout is in `chat_formats.py`: by the tokenizer's chat template, else with the markers
`<human> words <agent> words <end> <human> words ...`. The agent's words and the token that ends
them are its actions; the state before an utterance ends with the invitation to speak (the
`<agent>` marker), and the rating lies on the last end. A system message stands before the turns,
in training and in conversation alike.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from ilql_jax.errors import shown
from ilql_jax.lookahead import Replies
from ilql_jax.trajectory import Trajectory
from imagination.chat_formats import (
    AGENT,
    END,
    HUMAN,
    MARKER_TEMPLATE,
    MARKERS,
    NO_TURN,
    PAD,
    Chat,
    Format,
    Layout,
    LossOn,
    MarkerFormat,
    learned_from,
)
from imagination.chat_templates import TEMPLATE_DATE, TemplateFormat
from imagination.dialogue import Dialogue, DialogueError, Turn


class DialogueTokenizer:
    """Text to tokens and back, with the two sides kept apart.

    Args:
        tokenizer: A fast Hugging Face tokenizer. Without chat template it gets our markers, as far
            as it lacks them; one that has them all is one of ours, and keeps to them. A chat
            template is replaced by the one that is used, which is saved with it.
        opening: See `TemplateFormat`.
        date: See `TemplateFormat`, too.

    Attributes:
        vocab_size: Number of tokens.
        end: Token that ends the agent's utterances.
    """

    def __init__(self, tokenizer, opening: str = "", date: datetime.date = TEMPLATE_DATE):
        self._tokenizer = tokenizer
        self._format = _format(tokenizer, opening, date)
        if isinstance(self._format, TemplateFormat):
            tokenizer.chat_template = self._format.template
        self.end = self._format.end
        self.vocab_size = len(tokenizer)

    @classmethod
    def train(
        cls, dialogues: Iterable[Dialogue], vocab_size: int, min_frequency: int = 2
    ) -> DialogueTokenizer:
        """Trains a byte-level BPE on the dialogues' text (at most `vocab_size` tokens)."""
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
        bpe.train_from_iterator(_texts(dialogues), trainer)
        return cls(
            PreTrainedTokenizerFast(
                tokenizer_object=bpe, pad_token=PAD, additional_special_tokens=[HUMAN, AGENT, END]
            )
        )

    @classmethod
    def load(
        cls,
        name_or_folder: str | os.PathLike[str],
        opening: str = "",
        date: datetime.date = TEMPLATE_DATE,
    ) -> DialogueTokenizer:
        """Loads a Hugging Face tokenizer by name or folder, such as one that `save` wrote.

        Args:
            name_or_folder: Name or folder; one of `save` has its opening and date in its template.
            opening: See `TemplateFormat`.
            date: See `TemplateFormat`, too.

        Raises:
            DialogueError: It cannot be found or read.
        """
        from transformers import AutoTokenizer

        try:
            _check_files(Path(name_or_folder))
            try:
                # Code that a folder brings along is never executed.
                read = AutoTokenizer.from_pretrained(
                    str(name_or_folder), use_fast=True, trust_remote_code=False
                )
            except Exception as error:  # whatever a damaged file makes the library stumble on
                raise ValueError(str(error) or repr(error)) from None
            return cls(read, opening, date)
        except DialogueError as error:
            raise DialogueError(f"tokenizer {str(name_or_folder)!r}: {error}") from None
        except (OSError, ValueError) as error:
            problem = shown(str(error).splitlines()[0], 300).rstrip(".")
            raise DialogueError(
                f"no tokenizer that can be used in {str(name_or_folder)!r}: {problem}. Give a "
                "folder with tokenizer.json or a name on the Hugging Face hub."
            ) from None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes it in Hugging Face's format."""
        self._tokenizer.save_pretrained(str(folder))

    def export(self, folder: str | os.PathLike[str]) -> None:
        """Writes it for use elsewhere: with a chat template also where the markers are ours."""
        self.save(folder)
        if isinstance(self._format, MarkerFormat):
            (Path(folder) / "chat_template.jinja").write_text(MARKER_TEMPLATE, "utf-8")

    def notes(self, dialogues: Sequence[Dialogue]) -> list[str]:
        """Tells what the chat template does to these dialogues beside laying out their words."""
        if not isinstance(self._format, TemplateFormat):
            return []
        return self._format.notes([Chat(d.turns, d.system) for d in dialogues])

    def writable(self, vocab_size: int | None = None) -> Bool[np.ndarray, " vocab"]:
        """True for tokens an agent may write: words and the end, no other special token.

        Args:
            vocab_size: Size of the network's vocabulary, which may have room for more tokens.
        """
        allowed = np.arange(vocab_size or self.vocab_size) < self.vocab_size
        special = [i for i, t in self._tokenizer.added_tokens_decoder.items() if t.special]
        allowed[[*special, *self._tokenizer.all_special_ids]] = False
        allowed[self.end] = True
        return allowed

    def replies(self, max_length: int, vocab_size: int | None = None) -> Replies:
        """Layout of what the human says, for a policy that looks ahead.

        Args:
            max_length: Longest reply that is imagined, in tokens.
            vocab_size: As of `writable`.

        Raises:
            DialogueError: A chat template that does not end the human's words.
        """
        layout = self._format.reply_layout()
        words = self.writable(vocab_size)
        words[self.end] = False
        allowed = tuple(map(int, np.flatnonzero(words)))
        return Replies(*layout, over=self.end, allowed=allowed, max_length=max_length)

    def special_tokens(self) -> dict[str, int]:
        """Ids for the `config.json` of a network that was trained with it."""
        pad = self._tokenizer.pad_token_id
        return {"eos_token_id": self.end, "pad_token_id": self.end if pad is None else pad}

    def context(
        self, turns: Sequence[Turn], max_length: int | None = None, system: str | None = None
    ) -> Int[np.ndarray, " time"]:
        """Tokens of a conversation up to where the agent speaks next, int32.

        Args:
            turns: The conversation, the human's turn last.
            max_length: Leaves out the oldest turns until the rest fits.
            system: Its system message, if any.

        Raises:
            NoRoomError: The last turn, or the system message, does not fit alone.
        """
        return self.contexts([turns], max_length, [system])[0]

    def contexts(
        self,
        conversations: Sequence[Sequence[Turn]],
        max_length: int | None = None,
        systems: Sequence[str | None] | None = None,
    ) -> list[Int[np.ndarray, " time"]]:
        """`context` of many conversations in one go, with a system message for each."""
        systems = systems or [None] * len(conversations)
        chats = [Chat(*each) for each in zip(conversations, systems, strict=True)]
        return [np.asarray(t, np.int32) for t in self._format.contexts(chats, max_length)]

    def decode(self, tokens: Int[np.ndarray, " time"]) -> str:
        """The words of an utterance, without markers."""
        words = [int(t) for t in tokens if int(t) not in self._format.silent]
        # Some releases of transformers would take out spaces before punctuation.
        text = self._tokenizer.decode(
            words, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text.strip()

    def trajectories(
        self,
        dialogues: Sequence[Dialogue],
        reward_scale: float = 1.0,
        loss_on: LossOn = "agent",
        with_ends: bool = False,
    ) -> list[Trajectory]:
        """One trajectory per dialogue.

        Args:
            dialogues: Rated dialogues.
            reward_scale: Rewards are multiplied by it.
            loss_on: Turns that are learned from: all of the `agent`'s, `agent_last`, or those
                `marked` in the data. The agent's other turns stay actions that are neither cloned
                nor credited; a turn's own `clone` and `credit` go before this choice.
            with_ends: A dialogue that is over has one more token, `end` in the human's place. Who
                learns to predict what is read learns from it when dialogues end.

        Raises:
            DialogueError: A dialogue without rating or without an agent turn, one that cannot be
                laid out, or nothing to learn from in any of them.
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
        learned = [learned_from(dialogue.turns, loss_on) for dialogue in dialogues]
        if learned and not any(any(pair) for turns in learned for pair in turns.values()):
            raise DialogueError(
                f"loss_on={loss_on!r} leaves nothing to learn from in {len(dialogues):,} "
                'dialogues: no turn of the agent has "learn": true (or clone, credit). Mark some, '
                "or set loss_on='agent'."
            )
        layouts = self._lay_out(dialogues, [Chat(d.turns, d.system) for d in dialogues])
        end = (self.end,) if with_ends else ()
        return [
            _trajectory(dialogue, layout, reward_scale, turns, end if dialogue.terminal else ())
            for dialogue, layout, turns in zip(dialogues, layouts, learned, strict=True)
        ]

    def utterances(self, turns: Sequence[tuple[Dialogue, int]]) -> list[Trajectory]:
        """Single utterances of the agent, each with all that was said before it; without rewards.

        Args:
            turns: Dialogue and index of the turn in it, counted from 0; the turn is the agent's.
        """
        chats = [Chat(dialogue.turns[: turn + 1], dialogue.system) for dialogue, turn in turns]
        layouts = self._lay_out([dialogue for dialogue, _ in turns], chats)
        return [
            Trajectory(
                tokens=np.asarray(tokens, np.int32),
                is_action=np.asarray(action_turn) == turn,
                rewards=np.zeros(len(tokens), np.float32),
                name=f"turn {turn} of dialogue {dialogue.id}",
            )
            for (dialogue, turn), (tokens, action_turn) in zip(turns, layouts, strict=True)
        ]

    def _lay_out(self, dialogues: Sequence[Dialogue], chats: Sequence[Chat]) -> list[Layout]:
        """Lays out all at once; an error names the dialogue."""
        try:
            return self._format.lay_out(chats)
        except DialogueError:
            for dialogue, chat in zip(dialogues, chats, strict=True):
                try:
                    self._format.lay_out([chat])
                except DialogueError as error:
                    raise DialogueError(f"dialogue {dialogue.id}: {error}") from None
            raise


def _check_files(folder: Path) -> None:
    """Raises `DialogueError` for what is no file in a folder: reading a device would never end."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DialogueError(f"{path} is neither a file nor a folder. Move it away.")


def _texts(dialogues: Iterable[Dialogue]) -> Iterator[str]:
    """All text that a tokenizer meets."""
    for dialogue in dialogues:
        if dialogue.system is not None:
            yield dialogue.system
        yield from (turn.text for turn in dialogue.turns)


def _format(tokenizer, opening: str, date: datetime.date) -> Format:
    missing = [marker for marker in MARKERS if marker not in tokenizer.get_vocab()]
    if missing and tokenizer.chat_template:
        return TemplateFormat(tokenizer, opening, date)
    if missing:
        # Beside those that it has: they stay special.
        tokenizer.add_tokens([tokenizers.AddedToken(m, special=True) for m in missing], True)
    return MarkerFormat(tokenizer)


def _trajectory(
    dialogue: Dialogue,
    layout: Layout,
    reward_scale: float,
    learned: Mapping[int, tuple[bool, bool]],
    end: Sequence[int],
) -> Trajectory:
    """`learned` has (cloned, credited) of each agent turn, as `learned_from` returns them."""
    action_turn = np.asarray(layout.action_turn)
    last_action = np.flatnonzero(action_turn != NO_TURN)[-1]
    # The human's words after the agent's last turn change nothing that is learned.
    length = last_action + 1 if dialogue.terminal else len(action_turn)
    tokens = np.asarray([*layout.tokens[:length], *end], np.int32)
    action_turn = np.append(action_turn[:length], [NO_TURN] * len(end))
    rewards = np.zeros(len(tokens))
    for index in learned:
        last = np.flatnonzero(action_turn == index)[-1]
        rewards[last] = dialogue.turns[index].reward * reward_scale
    rewards[last_action] += dialogue.reward * reward_scale
    clone = _of_turns(action_turn, {index: cloned for index, (cloned, _) in learned.items()})
    credit = _of_turns(action_turn, {index: credited for index, (_, credited) in learned.items()})
    return Trajectory(
        tokens=tokens,
        is_action=action_turn != NO_TURN,
        rewards=rewards.astype(np.float32),
        terminal=dialogue.terminal,
        name=f"dialogue {dialogue.id}",
        clone=None if clone is None else clone.astype(np.float32),
        credit=credit,
    )


def _of_turns(
    action_turn: Int[np.ndarray, " time"], chosen: Mapping[int, bool]
) -> Bool[np.ndarray, " time"] | None:
    """Marks the tokens of the chosen turns; None = all of the agent's are."""
    if all(chosen.values()):
        return None
    return np.isin(action_turn, [index for index, is_chosen in chosen.items() if is_chosen])


def save_once(tokenizer: DialogueTokenizer, folder: Path) -> None:
    """Saves whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    tokenizer.save(partial)
    partial.replace(folder)
