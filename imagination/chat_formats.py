"""Conversations as tokens: with markers of our own, or by a tokenizer's chat template.

`MarkerFormat` is for tokenizers without a chat template. `TemplateFormat` (`chat_templates.py`)
writes conversations as the checkpoint's own does, so that a chat model reads what it knows. Both
make the *action mask*: the tokens that the agent wrote. It follows from the layout; no token's id
says so. Which of these actions are learned from is a choice of its own, `loss_on` (see
`learned_from`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from imagination.dialogue import DialogueError, Turn

PAD, HUMAN, AGENT, END = MARKERS = ("<pad>", "<human>", "<agent>", "<end>")
NO_TURN = -1

LossOn = Literal["agent", "agent_last", "marked"]
LOSS_ON: tuple[LossOn, ...] = ("agent", "agent_last", "marked")

# `MarkerFormat` as a chat template, for tools that know chat templates alone.
MARKER_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    f"{{% elif message['role'] == 'user' %}}{HUMAN}{{{{ message['content'] }}}}"
    f"{{% elif message['role'] == 'assistant' %}}{AGENT}"
    f"{{% generation %}}{{{{ message['content'] }}}}{END}{{% endgeneration %}}"
    "{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{AGENT}{{% endif %}}"
)


class NoRoomError(DialogueError):
    """A last turn, or a system message, that does not fit by itself."""


class Chat(NamedTuple):
    """A conversation to be laid out: its turns, and the system message before them, if any."""

    turns: Sequence[Turn]
    system: str | None = None


class Layout(NamedTuple):
    """A conversation as tokens with its action mask.

    Attributes:
        tokens: All tokens.
        action_turn: For each token the index of the agent's turn that it is an action of;
            `NO_TURN` for tokens of the human, of the system message and of the layout.
    """

    tokens: list[int]
    action_turn: list[int]


class ReplyLayout(NamedTuple):
    """Layout of the human's turn between two of the agent's.

    Attributes:
        opens: Tokens before the human's words.
        stop: Token that ends them.
        closes: Tokens from there to the agent's words.
    """

    opens: tuple[int, ...]
    stop: int
    closes: tuple[int, ...]


class Format(Protocol):
    """A layout of conversations as tokens.

    Attributes:
        end: Token that ends the agent's utterances.
        silent: Tokens that are no words of an utterance.
    """

    end: int
    silent: frozenset[int]

    def lay_out(self, chats: Sequence[Chat]) -> list[Layout]:
        """Lays out whole conversations and masks the agent's actions."""
        ...

    def contexts(self, chats: Sequence[Chat], max_length: int | None) -> list[list[int]]:
        """Lays out conversations up to where the agent speaks next.

        Of too long ones the system message and the newest turns are kept.

        Raises:
            NoRoomError: The last turn, or the system message, does not fit alone.
        """
        ...

    def reply_layout(self) -> ReplyLayout:
        """The layout of the human's turn between two of the agent's.

        Raises:
            DialogueError: It does not end with a token of its own.
        """
        ...


def learned_from(turns: Sequence[Turn], loss_on: LossOn) -> dict[int, tuple[bool, bool]]:
    """Chooses the agent's turns that are learned from; all of them stay actions.

    A turn with `clone` or `credit` of its own keeps these, whatever `loss_on` says.

    Args:
        turns: A conversation.
        loss_on: `agent`: all turns of the agent. `agent_last`: its last turn. `marked`: its turns
            with `learn` set.

    Returns:
        Index of each agent turn -> (cloned by the policy, credited by the values).

    Raises:
        ValueError: Another `loss_on`.
    """
    if loss_on not in LOSS_ON:
        raise ValueError(f"loss_on is {loss_on!r}, but must be {', '.join(LOSS_ON)}.")
    own = agent_turns(turns)
    chosen = {
        index: {"agent": True, "agent_last": index == own[-1], "marked": turns[index].learn}[
            loss_on
        ]
        for index in own
    }
    return {
        index: (
            chosen[index] if turns[index].clone is None else turns[index].clone,
            chosen[index] if turns[index].credit is None else turns[index].credit,
        )
        for index in own
    }


class MarkerFormat:
    """`system text <human> words <agent> words <end> <human> words ...`

    The agent's words and the `<end>` after them are its actions. A system message stands before
    the first marker.
    """

    def __init__(self, tokenizer):
        self._backend = tokenizer.backend_tokenizer
        # Text that people type must not be able to speak for the other side.
        self._backend.encode_special_tokens = True
        pad, self._human, self._agent, self.end = tokenizer.convert_tokens_to_ids(list(MARKERS))
        self.silent = frozenset((pad, self._human, self._agent, self.end))

    def lay_out(self, chats: Sequence[Chat]) -> list[Layout]:
        layouts = []
        for chat, (system, pieces) in zip(chats, self._encoded(chats), strict=True):
            tokens, action_turn = list(system), [NO_TURN] * len(system)
            for index, (turn, piece) in enumerate(zip(chat.turns, pieces, strict=True)):
                tokens += piece
                writer = index if turn.speaker == "agent" else NO_TURN
                action_turn += [NO_TURN] + [writer] * (len(piece) - 1)  # the marker is no action
            layouts.append(Layout(tokens, action_turn))
        return layouts

    def contexts(self, chats: Sequence[Chat], max_length: int | None) -> list[list[int]]:
        result = []
        for index, (system, pieces) in enumerate(self._encoded(chats)):
            size = len(system) + 1 + sum(map(len, pieces))
            first = 0
            while max_length and size > max_length and first < len(pieces) - 1:
                size -= len(pieces[first])
                first += 1
            if max_length and size > max_length:
                only_turns = pieces and len(system) < max_length
                raise NoRoomError(
                    f"conversation {index}: its {'last turn' if only_turns else 'system message'} "
                    f"alone does not fit in {max_length} tokens. Shorten it, or give the network "
                    "more room."
                )
            kept = [token for piece in pieces[first:] for token in piece]
            result.append([*system, *kept, self._agent])
        return result

    def reply_layout(self) -> ReplyLayout:
        return ReplyLayout((self._human,), self._agent, ())  # the agent's marker ends the words

    def _encoded(self, chats: Sequence[Chat]) -> list[tuple[list[int], list[list[int]]]]:
        """Tokens of each system message, and of each turn with its markers."""
        # Much is said many times: each text is encoded once.
        texts = list({text for chat in chats for text in (chat.system or "", *_texts(chat))})
        encoded = self._backend.encode_batch(texts, add_special_tokens=False)
        words = {text: each.ids for text, each in zip(texts, encoded, strict=True)}
        return [
            (words[chat.system or ""], [self._piece(turn, words[turn.text]) for turn in chat.turns])
            for chat in chats
        ]

    def _piece(self, turn: Turn, words: list[int]) -> list[int]:
        human = turn.speaker == "human"
        return [self._human, *words] if human else [self._agent, *words, self.end]


def agent_turns(turns: Sequence[Turn]) -> list[int]:
    """Indexes of the agent's turns."""
    return [index for index, turn in enumerate(turns) if turn.speaker == "agent"]


def _texts(chat: Chat) -> list[str]:
    return [turn.text for turn in chat.turns]
