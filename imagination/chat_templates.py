"""Conversations as tokens by a tokenizer's chat template, as it is out in the world.

Templates differ in who may open, in where a system message may stand, in what they add, and in how
they invite an answer; `TemplateFormat` tries that out once.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Sequence
from typing import Any

from ilql_jax.errors import shown
from imagination.chat_formats import (
    NO_TURN,
    Chat,
    Layout,
    NoRoomError,
    ReplyLayout,
    agent_turns,
)
from imagination.checks import without_surrogates
from imagination.dialogue import ROLE_OF_SPEAKER, DialogueError, Turn
from imagination.limits import memory_limit, time_limit

# Templates that write today's date get this one, unless a run is set to another.
TEMPLATE_DATE = datetime.date(2025, 1, 1)


class TemplateFormat:
    """The layout of the tokenizer's chat template.

    What the agent is given is the layout up to its words: a conversation is laid out with a
    placeholder for what the agent says next, and cut before it, or where the template's invitation
    to speak (its generation prompt) ends. So an agent's first action is what comes right behind its
    context, in training and in conversation alike, whatever the template marks as generated. Its
    last one is the first token that ends a turn; what the template puts after that is no action.

    A template that lets no agent speak first, has no place for system messages or refuses two turns
    of the human in a row is given a few lines in front that put them where it can (`template`);
    `notes` tells of it.

    Args:
        tokenizer: With a chat template.
        opening: Words of the human that go before a conversation that the agent opens. "" = none
            where the template lets an agent speak first, else an empty turn.
        date: Written by templates that ask for today's, so that a dialogue has the same tokens
            every day.

    Attributes:
        template: The chat template as it is used: with a fixed date, and the lines in front.

    Raises:
        DialogueError: The template lays out no conversation, or does not end an agent's turn with a
            special token.
    """

    def __init__(self, tokenizer, opening: str = "", date: datetime.date = TEMPLATE_DATE):
        self._tokenizer = tokenizer
        # Text that people type must not be able to speak for the other side: the special tokens'
        # names are broken up in it.
        added = tokenizer.added_tokens_decoder.items()
        self._special = {token for token, each in added if each.special}
        self._special |= set(tokenizer.all_special_ids)
        names = tokenizer.convert_ids_to_tokens(sorted(self._special))
        names = sorted(filter(None, names), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self.template = _with_fixed_date(without_surrogates(tokenizer.get_chat_template()), date)
        self._gap, self._prompted = self._read_gap()
        self._alternates = False
        self.end = self._end_token()
        self.silent = frozenset({self.end})
        self._folds, self._opens, self._joins = self._adapt(opening)
        self._alternates = not self._takes(_TURNS[:2] + _TURNS[1:], None)

    def lay_out(self, chats: Sequence[Chat]) -> list[Layout]:
        if self._alternates:
            for chat in chats:
                _check_agent_turns(chat.turns)
        whole = self._encode(self._render([_with_reply(chat) for chat in chats]))
        places = [(row, i) for row, chat in enumerate(chats) for i in agent_turns(chat.turns)]
        contexts = self._contexts(
            [Chat(chats[row].turns[:i], chats[row].system) for row, i in places]
        )
        starts: list[list[int]] = [[] for _ in chats]
        for (row, index), context in zip(places, contexts, strict=True):
            if whole[row][: len(context)] != context:
                raise DialogueError(
                    f"the chat template lays out what comes before turn {index} "
                    f"({chats[row].turns[index].text[:40]!r}) in another way once the turn is "
                    "there, so an agent would be trained on what it never sees in conversation. "
                    "Use another template, or a tokenizer without one."
                )
            starts[row].append(len(context))
        return [
            self._masked(chat.turns, *each)
            for chat, *each in zip(chats, whole, starts, strict=True)
        ]

    def contexts(self, chats: Sequence[Chat], max_length: int | None) -> list[list[int]]:
        encoded = self._contexts(chats)
        for index, chat in enumerate(chats):
            while max_length and len(encoded[index]) > max_length:
                chat = Chat(_without_oldest(chat.turns), chat.system)
                if not chat.turns:
                    raise NoRoomError(
                        f"conversation {index}: its last turn alone does not fit in {max_length} "
                        "tokens. Shorten it, or give the network more room."
                    )
                [encoded[index]] = self._contexts([chat])
        return encoded

    def notes(self, chats: Sequence[Chat]) -> list[str]:
        """Tells what the template does to these conversations beside laying out their words."""
        notes = []
        with_system = sum(chat.system is not None for chat in chats)
        opened = sum(not chat.turns or chat.turns[0].speaker == "agent" for chat in chats)
        if self._folds and with_system:
            notes.append(
                "The chat template refuses, drops or moves system messages: that of "
                f"{with_system:,} dialogues stands at the beginning of the human's first turn."
            )
        if self._opens and opened:
            notes.append(
                f"The agent speaks first in {opened:,} dialogues, which the chat template does not "
                "provide for: an empty turn of the human goes before it. "
                "--config.tokenizer.opening puts words there."
            )
        joined = sum(_repeats_human(chat.turns) for chat in chats)
        if self._joins and joined:
            notes.append(
                "The chat template lets the two sides speak in turn: where the human has several "
                f"turns in a row, in {joined:,} dialogues, they are laid out as one, a line each."
            )
        if len(chats) > with_system and (own := self._own_system()):
            notes.append(
                "The chat template writes a system message of its own where there is none: "
                f"{own[:80]!r}."
            )
        if self._prompted:
            notes.append(
                f"The chat template invites an answer with {self._prompted!r}, which finished "
                "answers lack; agents are trained and asked without it."
            )
        return notes

    def reply_layout(self) -> ReplyLayout:
        chat = Chat((Turn("human", "a"), Turn("agent", "b"), Turn("human", _PLACEHOLDER_HUMAN)))
        [text] = self._before_words([chat])
        before, _, after = text.removesuffix(self._gap).partition(_PLACEHOLDER_HUMAN)
        # Many tokenizers join spaces to a word.
        whole, closing = self._encode([before.rstrip(" "), after])
        opens = whole[len(whole) - whole[::-1].index(self.end) :]
        if not opens or not closing or closing[0] not in self._special:
            raise DialogueError(
                "the chat template does not put a special token behind what a human says, so what "
                "the human says next cannot be imagined. Decode without looking ahead."
            )
        return ReplyLayout(tuple(opens), closing[0], tuple(closing[1:]))

    def _masked(self, turns: Sequence[Turn], tokens: list[int], starts: list[int]) -> Layout:
        """The action mask: each agent turn from its start to the token that ends it."""
        own = agent_turns(turns)
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

    # What the template does

    def _read_gap(self) -> tuple[str, str]:
        """Text between the invitation and an agent's words, and what the invitation has more.

        The invitation counts where finished turns begin with it, and with no special token behind
        it, which agents may not write; else an agent is invited by all that precedes its words, but
        for spaces, which many tokenizers join to a word.
        """
        chat = Chat((Turn("human", _PLACEHOLDER_HUMAN),))
        [before] = self._before_words([chat])
        if _PLACEHOLDER_HUMAN not in before:
            raise DialogueError(
                "the chat template leaves out or changes what a human says. Use another template, "
                "or a tokenizer without one."
            )
        [invited] = self._render([chat], add_generation_prompt=True)
        gap = before[len(invited) :]
        if before.startswith(invited) and not self._names.search(gap):
            return gap, ""
        more = invited[len(before) :].strip() if invited.startswith(before) else ""
        return before[len(before.rstrip(" ")) :], more

    def _end_token(self) -> int:
        """The first special token after an agent's words."""
        turns = (Turn("human", "a"), Turn("agent", "b"))
        [whole] = self._encode(self._render([_with_reply(Chat(turns))]))
        [context] = self._contexts([Chat(turns[:1])])
        end = next((token for token in whole[len(context) :] if token in self._special), None)
        if end is None:
            raise DialogueError(
                "the chat template does not end an agent's turn with a special token, so an agent "
                "could not stop. Use another template, or a tokenizer without one."
            )
        return end

    def _adapt(self, opening: str) -> tuple[bool, bool, bool]:
        """Puts lines before the template, where it needs some.

        Returns:
            Whether system messages are put in the human's first turn, whether the human is given an
            empty turn before an agent that opens, and whether turns of the human that follow each
            other are joined.
        """
        original, opened, repeated = self.template, _TURNS[1:], _TURNS[:1] + _TURNS
        if not self._takes(_TURNS, None):
            return False, False, False  # what it does wrong is told of a dialogue
        folds = not self._takes(_TURNS, _PLACEHOLDER_SYSTEM)
        opens = not self._takes(opened, None)
        opens = opens or (not folds and not self._takes(opened, _PLACEHOLDER_SYSTEM))
        joins = not self._takes(repeated, None)
        if not (folds or opens or joins or opening):
            return False, False, False
        self.template = _lines_in_front(self._as_words(opening), folds, opens, joins) + original
        if not (
            self._takes(opened, None)
            and self._takes(repeated, None)
            and self._takes(_TURNS, _PLACEHOLDER_SYSTEM)
        ):
            self.template = original
            return False, False, False
        return folds, (opens or folds) and not opening, joins

    def _takes(self, turns: Sequence[Turn], system: str | None) -> bool:
        """True if the template lays out such a conversation, with all of it where it belongs."""
        first = agent_turns(turns)[0]
        try:
            self.lay_out([Chat(turns, system)])
            [before] = self._before_words([Chat(turns[:first], system)])
        except DialogueError:
            return False
        return before.count(_PLACEHOLDER_HUMAN) == first and (system or "") in before

    def _own_system(self) -> str:
        """The system message that the template invents, or nothing."""
        first, second = f"{_PLACEHOLDER}-1", f"{_PLACEHOLDER}-2"
        turns = (Turn("human", first), Turn("agent", "b"), Turn("human", second))
        [text] = self._render([Chat(turns)])
        before, _, rest = self._names.sub(" ", text).partition(first)
        between, _, _ = rest.partition(second)
        while before and between and before[-1] == between[-1]:  # the header of a human's turn
            before, between = before[:-1], between[:-1]
        return " ".join(before.split())

    # Text and tokens

    def _contexts(self, chats: Sequence[Chat]) -> list[list[int]]:
        """Tokens of each conversation up to where the agent speaks next."""
        return self._encode([text.removesuffix(self._gap) for text in self._before_words(chats)])

    def _before_words(self, chats: Sequence[Chat]) -> list[str]:
        """Layout of each conversation up to the words that the agent says next."""
        says = Turn("agent", _PLACEHOLDER)
        texts = self._render([_with_reply(Chat((*c.turns, says), c.system)) for c in chats])
        parts = [text.rpartition(_PLACEHOLDER) for text in texts]
        if not all(found for _, found, _ in parts):
            raise DialogueError(
                "the chat template leaves out or changes what an agent says. Use another template, "
                "or a tokenizer without one."
            )
        return [before for before, _, _ in parts]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # The template writes the special tokens that a text begins with.
        encoded = self._tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return [each.ids for each in encoded]

    def _render(self, chats: Sequence[Chat], **options: Any) -> list[str]:
        if not chats:
            return []
        messages = [self._messages(chat) for chat in chats]
        said = [sum(len(message["content"]) for message in each) for each in messages]
        seconds = _SECONDS + _SECONDS_EACH * len(messages)
        memory = _MEMORY + _MEMORY_EACH * len(messages) + _MEMORY_OF_A_SIGN * sum(said)
        try:
            with time_limit(seconds), memory_limit(memory):
                texts = self._tokenizer.apply_chat_template(
                    messages, chat_template=self.template, tokenize=False, **options
                )
            sizes = zip(map(len, texts), said, strict=True)
            # More than that would take long to be read as tokens.
            odd = next((pair for pair in sizes if pair[0] > _ADDED + _TIMES * pair[1]), None)
            if odd is None:
                return texts
            problem = f"it makes {odd[0]:,} characters of the {odd[1]:,} that are said"
        except MemoryError:
            problem = f"it takes more than {memory / 1e6:,.0f} MB of memory"
        except Exception as error:  # a template is a program of somebody else's
            problem = shown(error, 300)
        raise DialogueError(
            f"the chat template cannot lay out a conversation: {problem}. Use another template, or "
            "a tokenizer without one."
        )

    def _messages(self, chat: Chat) -> list[dict[str, str]]:
        messages = [
            {
                "role": ROLE_OF_SPEAKER[turn.speaker],
                # Policies are decoded without spaces around; a tokenizer may join such to the
                # header, which then is another one than in conversation.
                "content": self._as_words(
                    turn.text.strip() if turn.speaker == "agent" else turn.text
                ),
            }
            for turn in chat.turns
        ]
        if chat.system is not None:
            messages.insert(0, {"role": "system", "content": self._as_words(chat.system)})
        return messages

    def _as_words(self, text: str) -> str:
        """The text with the names of special tokens broken up."""
        return self._names.sub(lambda name: f"{name[0][0]} {name[0][1:]}", text)


_SECONDS, _SECONDS_EACH = 0.5, 0.02  # for one to be laid out; real ones take a thousandth
# Bytes of memory: real ones take some kilobytes beside what is said.
_MEMORY, _MEMORY_EACH, _MEMORY_OF_A_SIGN = 2**28, 2**16, 16
_ADDED, _TIMES = 100_000, 4  # characters that may be added, and as a multiple of what is said

_PLACEHOLDER = "Placeholder-of-the-agents-words"
_PLACEHOLDER_HUMAN = "Placeholder-of-the-humans-words"
_PLACEHOLDER_SYSTEM = "Placeholder-of-the-system-message"
_TURNS = (Turn("human", _PLACEHOLDER_HUMAN), Turn("agent", "a")) * 2


def _with_fixed_date(template: str, date: datetime.date) -> str:
    """The template with this date in the place of today's."""

    def written(call: re.Match[str]) -> str:
        return repr(midnight.strftime(call[2]))

    midnight = datetime.datetime.combine(date, datetime.time())
    fixed = re.sub(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""", written, template)
    if re.search(r"strftime_now\s*\(", fixed):
        raise DialogueError(
            "the chat template writes today's date in a layout that is computed, so a dialogue "
            "would have other tokens every day. Write the layout into the call, as in "
            "strftime_now('%d %b %Y'), or use a tokenizer without a chat template."
        )
    if "date_string" in fixed and not re.search(r"set\s+date_string\b", fixed):
        fixed = f"{{% set date_string = {midnight.strftime('%d %b %Y')!r} %}}{fixed}"
    return fixed


def _lines_in_front(opening: str, folds: bool, opens: bool, joins: bool) -> str:
    """Lines for the beginning of a template that rearrange the messages for it.

    Args:
        opening: Words of the human before an agent that opens.
        folds: Puts the system message at the beginning of the human's first turn.
        opens: The template lets no agent speak first. With folded system messages alone, there is
            an opening turn only for them.
        joins: Turns of the human that follow each other become one, a line each.
    """
    when = "true" if opens or opening else "system_first"
    lines = [
        "{%- set system_first = messages | length > 0 and messages[0]['role'] == 'system' %}",
        "{%- set turns = messages[1:] if system_first else messages %}",
        *(_JOINED if joins else ()),
        f"{{%- if {when} and (not turns or turns[0]['role'] == 'assistant') %}}",
        f"{{%- set turns = [{{'role': 'user', 'content': {opening!a}}}] + turns %}}{{%- endif %}}",
        "{%- if system_first %}",
    ]
    if folds:
        lines += [
            "{%- set words = [messages[0]['content'], turns[0]['content']] | select | list %}",
            "{%- set turns = [{'role': 'user', 'content': words | join('\n\n')}] + turns[1:] %}",
        ]
    else:
        lines += ["{%- set turns = messages[:1] + turns %}"]
    return "".join([*lines, "{%- endif %}{%- set messages = turns %}{{ '' }}"])


_JOINED = (
    "{%- set joined = namespace(turns=[]) %}{%- for turn in turns %}",
    "{%- set last = joined.turns[-1] if joined.turns else turn %}",
    "{%- if joined.turns and last['role'] == 'user' and turn['role'] == 'user' %}",
    "{%- set words = last['content'] ~ '\n' ~ turn['content'] %}",
    "{%- set joined.turns = joined.turns[:-1] + [{'role': 'user', 'content': words}] %}",
    "{%- else %}{%- set joined.turns = joined.turns + [turn] %}{%- endif %}",
    "{%- endfor %}{%- set turns = joined.turns %}",
)


def _check_agent_turns(turns: Sequence[Turn]) -> None:
    """Raises `DialogueError` where the agent speaks twice, for templates that take turns."""
    for index in agent_turns(turns):
        if index and turns[index - 1].speaker == "agent":
            raise DialogueError(
                f"turns {index - 1} and {index} are both the agent's ({turns[index].text[:40]!r}), "
                "but the chat template lets the two sides speak in turn. Join them in the data, or "
                "use a tokenizer without a chat template."
            )


def _with_reply(chat: Chat) -> Chat:
    """The agent's last turn as it will read once the human replied.

    Some templates (Qwen 3) lay out an answer in another way while it is the last.
    """
    is_last = chat.turns and chat.turns[-1].speaker == "agent"
    return Chat((*chat.turns, Turn("human", ".")), chat.system) if is_last else chat


def _repeats_human(turns: Sequence[Turn]) -> bool:
    """True if the human has two turns in a row."""
    pairs = itertools.pairwise(turn.speaker for turn in turns)
    return any(one == other == "human" for one, other in pairs)


def _without_oldest(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Leaves out the oldest exchange, so that the same side begins: templates may demand it."""
    first = turns[0].speaker if turns else None
    later = turns[1:]
    while later and later[0].speaker != first:
        later = later[1:]
    return later
