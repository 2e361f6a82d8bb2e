"""Conversations as tokens: with markers of our own, or by a tokenizer's chat template.

`MarkerFormat` is for tokenizers without a chat template. `TemplateFormat` writes conversations as
the checkpoint's own chat template does, so that a chat model reads what it knows. Both make the
*action mask*: the tokens that the agent wrote. It follows from the layout; no token's id says so.
Which of these actions are learned from is a choice of its own, `loss_on` (see `learned_from`).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jinja2

from imagination.dialogue import ROLE_OF_SPEAKER, DialogueError, Turn
from imagination.time_limit import TimeLimitError, time_limit

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

# Templates that write today's date get this one, so that a dialogue has the same tokens every day.
TEMPLATE_DATE = datetime.datetime(2025, 1, 1)


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
    own = _agent_turns(turns)
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
            while max_length and size > max_length and first < len(pieces):
                size -= len(pieces[first])
                first += 1
            if max_length and size > max_length:
                raise DialogueError(
                    f"conversation {index}: its system message alone does not fit in {max_length} "
                    "tokens. Shorten it, or give the network more room."
                )
            kept = [token for piece in pieces[first:] for token in piece]
            result.append([*system, *kept, self._agent])
        return result

    def _encoded(self, chats: Sequence[Chat]) -> list[tuple[list[int], list[list[int]]]]:
        """Tokens of each system message, and of each turn with its markers."""
        texts = [text for chat in chats for text in (chat.system or "", *_texts(chat))]
        encoded = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        return [
            (next(encoded).ids, [self._piece(turn, next(encoded).ids) for turn in chat.turns])
            for chat in chats
        ]

    def _piece(self, turn: Turn, words: list[int]) -> list[int]:
        human = turn.speaker == "human"
        return [self._human, *words] if human else [self._agent, *words, self.end]


class TemplateFormat:
    """The layout of the tokenizer's chat template.

    An agent's turn begins behind the template's invitation to speak (its generation prompt) and
    goes to the first token that ends a turn, which the agent writes too; what the template puts
    after that is no action. Where the template marks generated text (`{% generation %}`), the marks
    tell where turns begin. Elsewhere, the conversation so far with the invitation must be laid out
    by the same tokens as in the whole conversation.

    Args:
        tokenizer: With a chat template.

    Raises:
        DialogueError: The template does not end an agent's turn with a special token.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        # Text that people type must not be able to speak for the other side: the special tokens'
        # names are broken up in it.
        added = tokenizer.added_tokens_decoder.items()
        self._special = {token for token, each in added if each.special}
        self._special |= set(tokenizer.all_special_ids)
        names = tokenizer.convert_ids_to_tokens(sorted(self._special))
        names = sorted(filter(None, names), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._template = _with_fixed_date(tokenizer.get_chat_template())
        self._marks_generation = bool(re.search(r"{%-?\s*generation\s*-?%}", self._template))
        self.end = self._end_token()
        self.silent = frozenset({self.end})

    def lay_out(self, chats: Sequence[Chat]) -> list[Layout]:
        starts = self._starts_by_mask if self._marks_generation else self._starts_by_prefix
        return [
            self._masked(chat.turns, *tokens_and_starts)
            for chat, tokens_and_starts in zip(chats, starts(chats), strict=True)
        ]

    def contexts(self, chats: Sequence[Chat], max_length: int | None) -> list[list[int]]:
        encoded = self._invited(chats)
        for index, chat in enumerate(chats):
            while max_length and len(encoded[index]) > max_length:
                chat = Chat(_without_oldest(chat.turns), chat.system)
                if not chat.turns:
                    raise DialogueError(
                        f"conversation {index}: its last turn alone does not fit in {max_length} "
                        "tokens. Shorten it, or give the network more room."
                    )
                [encoded[index]] = self._invited([chat])
        return encoded

    def _starts_by_mask(self, chats: Sequence[Chat]) -> list[tuple[list[int], list[int]]]:
        """Tokens of each conversation, and the beginnings of the template's marks.

        Marks may take in the header that the invitation ends with; the header is no action.
        """
        if not chats:
            return []
        encoded = self._apply(
            [_with_reply(chat) for chat in chats],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        header = self._header()
        result = []
        for tokens, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True):
            before = [0, *mask[:-1]]
            starts = [i for i, m in enumerate(mask) if m and not before[i]]
            result.append((tokens, [_behind(header, tokens, start) for start in starts]))
        return result

    def _starts_by_prefix(self, chats: Sequence[Chat]) -> list[tuple[list[int], list[int]]]:
        """Tokens of each conversation, and the ends of the invitations in it."""
        whole = self._encoded([_with_reply(chat) for chat in chats])
        places = [(row, i) for row, chat in enumerate(chats) for i in _agent_turns(chat.turns)]
        prefixes = self._invited(
            [Chat(chats[row].turns[:i], chats[row].system) for row, i in places]
        )
        starts: list[list[int]] = [[] for _ in chats]
        for (row, index), prefix in zip(places, prefixes, strict=True):
            if whole[row][: len(prefix)] != prefix:
                raise DialogueError(
                    f"the chat template lays out what comes before turn {index} "
                    f"({chats[row].turns[index].text[:40]!r}) in another way once the turn is "
                    "there, so it cannot be told which tokens are the agent's. Mark them in the "
                    "template with {% generation %}, or use a tokenizer without a chat template."
                )
            starts[row].append(len(prefix))
        return list(zip(whole, starts, strict=True))

    def _masked(self, turns: Sequence[Turn], tokens: list[int], starts: list[int]) -> Layout:
        """The action mask: each agent turn from its start to the token that ends it."""
        own = _agent_turns(turns)
        if len(starts) != len(own):
            raise DialogueError(
                f"the chat template marks {len(starts)} stretches as generated in a conversation "
                f"with {len(own)} turns of the agent; there must be one for each."
            )
        action_turn = [NO_TURN] * len(tokens)
        stop = 0
        for index, start in zip(own, starts, strict=True):
            try:
                stop = tokens.index(self.end, start) + 1
            except ValueError:
                raise DialogueError(
                    f"the chat template does not end turn {index} "
                    f"({turns[index].text[:40]!r}) as it ends others."
                ) from None
            action_turn[start:stop] = [index] * (stop - start)
        if own and own[-1] == len(turns) - 1:  # behind it is the reply of `_with_reply`
            return Layout(tokens[:stop], action_turn[:stop])
        return Layout(tokens, action_turn)

    def _end_token(self) -> int:
        """The first special token after an agent's words."""
        turns = (Turn("human", "a"), Turn("agent", "b"))
        [whole] = self._encoded([_with_reply(Chat(turns))])
        [prefix] = self._invited([Chat(turns[:1])])
        end = next((token for token in whole[len(prefix) :] if token in self._special), None)
        if end is None:
            raise DialogueError(
                "the chat template does not end an agent's turn with a special token, so an agent "
                "could not stop. Use another template, or a tokenizer without one."
            )
        return end

    def _header(self) -> list[int]:
        """Tokens of the invitation alone, e.g. those of `<|im_start|>assistant` and a line end."""
        chat = Chat((Turn("human", "a"),))
        [without], [invited] = self._encoded([chat]), self._invited([chat])
        return invited[len(without) :] if invited[: len(without)] == without else []

    def _invited(self, chats: Sequence[Chat]) -> list[list[int]]:
        """Tokens of each conversation, and of the invitation to speak."""
        encoded = self._encoded([c for c in chats if _has_messages(c)], add_generation_prompt=True)
        rest = iter(encoded)
        return [next(rest) if _has_messages(chat) else self._opening() for chat in chats]

    def _opening(self) -> list[int]:
        """The invitation to the agent that speaks first.

        Templates may need a first message (`messages[0]`), so it is cut from a conversation that
        the agent opens.
        """
        opened = _with_reply(Chat((Turn("agent", _PLACEHOLDER),)))
        [text] = self._apply([opened], tokenize=False)
        return self._encode([text.partition(_PLACEHOLDER)[0]])[0]

    def _encoded(self, chats: Sequence[Chat], **options: Any) -> list[list[int]]:
        return self._encode(self._apply(chats, tokenize=False, **options)) if chats else []

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # The template writes the special tokens that a text begins with.
        encoded = self._tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return [each.ids for each in encoded]

    def _apply(self, chats: Sequence[Chat], **options: Any) -> Any:
        messages = [self._messages(chat) for chat in chats]
        try:
            with time_limit(_SECONDS + _SECONDS_EACH * len(messages)):
                return self._tokenizer.apply_chat_template(
                    messages, chat_template=self._template, **options
                )
        except _TEMPLATE_ERRORS as error:
            raise DialogueError(
                f"the chat template cannot lay out a conversation: {error}. Use another template, "
                "or a tokenizer without one."
            ) from None

    def _messages(self, chat: Chat) -> list[dict[str, str]]:
        def broken_up(name: re.Match[str]) -> str:
            return f"{name[0][0]} {name[0][1:]}"

        roles = [ROLE_OF_SPEAKER[turn.speaker] for turn in chat.turns]
        pairs = list(zip(roles, _texts(chat), strict=True))
        if chat.system is not None:
            pairs.insert(0, ("system", chat.system))
        return [{"role": r, "content": self._names.sub(broken_up, text)} for r, text in pairs]


# A template is a program of somebody else's: it may compute what cannot be, or never end.
_TEMPLATE_ERRORS = (
    *(jinja2.TemplateError, TimeLimitError, ArithmeticError, AttributeError, LookupError),
    *(MemoryError, RecursionError, TypeError, ValueError),
)
_SECONDS, _SECONDS_EACH = 0.5, 0.02  # for one to be laid out; real ones take a thousandth

_PLACEHOLDER = "Placeholder-of-the-first-words"


def _with_fixed_date(template: str) -> str:
    """The template with `TEMPLATE_DATE` in the place of calls for today's date."""

    def written(call: re.Match[str]) -> str:
        return repr(TEMPLATE_DATE.strftime(call[2]))

    fixed = re.sub(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", written, template)
    if re.search(r"strftime_now\s*\(", fixed):
        raise DialogueError(
            "the chat template writes today's date in a layout that is computed, so a dialogue "
            "would have other tokens every day. Write the layout into the call, as in "
            "strftime_now('%d %b %Y'), or use a tokenizer without a chat template."
        )
    return fixed


def _behind(header: list[int], tokens: list[int], start: int) -> int:
    """The end of the header if one overlaps `start`, else `start`."""
    for first in range(max(0, start - len(header) + 1), start + 1):
        if header and tokens[first : first + len(header)] == header:
            return first + len(header)
    return start


def _has_messages(chat: Chat) -> bool:
    return bool(chat.turns) or chat.system is not None


def _texts(chat: Chat) -> list[str]:
    return [turn.text for turn in chat.turns]


def _agent_turns(turns: Sequence[Turn]) -> list[int]:
    """Indexes of the agent's turns."""
    return [index for index, turn in enumerate(turns) if turn.speaker == "agent"]


def _with_reply(chat: Chat) -> Chat:
    """The agent's last turn as it will read once the human replied.

    Some templates (Qwen 3) lay out an answer in another way while it is the last.
    """
    is_last = chat.turns and chat.turns[-1].speaker == "agent"
    return Chat((*chat.turns, Turn("human", ".")), chat.system) if is_last else chat


def _without_oldest(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Leaves out the oldest exchange, so that the same side begins: templates may demand it."""
    first = turns[0].speaker if turns else None
    later = turns[1:]
    while later and later[0].speaker != first:
        later = later[1:]
    return later
