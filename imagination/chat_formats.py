"""How a conversation is laid out as tokens: with markers of our own, or by a chat template.

`MarkerFormat` is for tokenizers without a chat template. `TemplateFormat` writes conversations as
the checkpoint's own chat template does, so that a chat model reads what it knows. In both, which
tokens the agent wrote follows from the layout; no token's id says so, wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jinja2

from imagination.dialogue import ROLE_OF_SPEAKER, DialogueError, Turn

PAD, HUMAN, AGENT, END = MARKERS = ("<pad>", "<human>", "<agent>", "<end>")
NOBODY = -1
# What `MarkerFormat` does, for tools that know chat templates alone.
MARKER_TEMPLATE = (
    "{% for message in messages %}"
    f"{{% if message['role'] == 'user' %}}{HUMAN}{{{{ message['content'] }}}}"
    f"{{% elif message['role'] == 'assistant' %}}{AGENT}"
    f"{{% generation %}}{{{{ message['content'] }}}}{END}{{% endgeneration %}}"
    "{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{AGENT}{{% endif %}}"
)


class LaidOut(NamedTuple):
    """A conversation as tokens.

    Attributes:
        tokens: All of them.
        wrote: For each token, the index of the turn in which the agent wrote it, `NOBODY` where
            it did not.
    """

    tokens: list[int]
    wrote: list[int]


class Format(Protocol):
    """What `DialogueTokenizer` needs to know of a layout.

    Attributes:
        end: Token that ends the agent's utterances.
        silent: Tokens that are no words of an utterance.
    """

    end: int
    silent: frozenset[int]

    def lay_out(self, conversations: Sequence[Sequence[Turn]]) -> list[LaidOut]:
        """Whole conversations."""

    def contexts(
        self, conversations: Sequence[Sequence[Turn]], max_length: int | None
    ) -> list[list[int]]:
        """Conversations up to where the agent speaks next; of too long ones the newest turns."""


class MarkerFormat:
    """`<human> words <agent> words <end> <human> words ...`

    The agent's words and the `<end>` after them are its actions.
    """

    def __init__(self, tokenizer):
        self._backend = tokenizer.backend_tokenizer
        # What people type must not be able to speak for the other side.
        self._backend.encode_special_tokens = True
        pad, self._human, self._agent, self.end = tokenizer.convert_tokens_to_ids(list(MARKERS))
        self.silent = frozenset((pad, self._human, self._agent, self.end))

    def lay_out(self, conversations: Sequence[Sequence[Turn]]) -> list[LaidOut]:
        return [self._laid_out(turns, words) for turns, words in self._encoded(conversations)]

    def contexts(
        self, conversations: Sequence[Sequence[Turn]], max_length: int | None
    ) -> list[list[int]]:
        result = []
        for turns, words in self._encoded(conversations):
            pieces = [self._piece(*each) for each in zip(turns, words, strict=True)]
            while max_length and pieces and 1 + sum(map(len, pieces)) > max_length:
                pieces.pop(0)
            result.append([*(token for piece in pieces for token in piece), self._agent])
        return result

    def _laid_out(self, turns: Sequence[Turn], words: list[list[int]]) -> LaidOut:
        tokens: list[int] = []
        wrote: list[int] = []
        for index, (turn, said) in enumerate(zip(turns, words, strict=True)):
            piece = self._piece(turn, said)
            tokens += piece
            writer = index if turn.speaker == "agent" else NOBODY
            wrote += [NOBODY] + [writer] * (len(piece) - 1)
        return LaidOut(tokens, wrote)

    def _piece(self, turn: Turn, words: list[int]) -> list[int]:
        human = turn.speaker == "human"
        return [self._human, *words] if human else [self._agent, *words, self.end]

    def _encoded(
        self, conversations: Sequence[Sequence[Turn]]
    ) -> list[tuple[Sequence[Turn], list[list[int]]]]:
        """Conversations with the tokens of each turn's words."""
        texts = [turn.text for turns in conversations for turn in turns]
        encoded = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        return [(turns, [next(encoded).ids for _ in turns]) for turns in conversations]


class TemplateFormat:
    """As the tokenizer's chat template lays it out.

    Where the template marks what the assistant generates (`{% generation %}`), these tokens are
    the agent's. Elsewhere they are those that follow the conversation so far with the template's
    invitation to speak, which have to be the same tokens in the whole conversation. In both cases
    an utterance goes to the first token that ends a turn, which the agent writes too; what the
    template puts after that is nobody's.

    Args:
        tokenizer: With a chat template.

    Raises:
        DialogueError: The template does not end an agent's turn with a special token.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        # What people type must not be able to speak for the other side: the special tokens' names
        # are broken up in it.
        added = tokenizer.added_tokens_decoder.items()
        self._special = {token for token, each in added if each.special}
        self._special |= set(tokenizer.all_special_ids)
        names = tokenizer.convert_ids_to_tokens(sorted(self._special))
        names = sorted(filter(None, names), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._marks_generation = bool(
            re.search(r"{%-?\s*generation\s*-?%}", tokenizer.get_chat_template())
        )
        self.end = self._end_token()
        self.silent = frozenset({self.end})

    def lay_out(self, conversations: Sequence[Sequence[Turn]]) -> list[LaidOut]:
        starts = self._starts_by_mask if self._marks_generation else self._starts_by_prefix
        return [
            self._laid_out(turns, *found)
            for turns, found in zip(conversations, starts(conversations), strict=True)
        ]

    def contexts(
        self, conversations: Sequence[Sequence[Turn]], max_length: int | None
    ) -> list[list[int]]:
        encoded = self._invited(conversations)
        for index, turns in enumerate(conversations):
            while max_length and len(encoded[index]) > max_length:
                turns = _without_oldest(turns)
                if not turns:
                    raise DialogueError(
                        f"conversation {index}: its last turn alone does not fit in {max_length} "
                        "tokens. Shorten it, or give the network more room."
                    )
                [encoded[index]] = self._invited([turns])
        return encoded

    def _starts_by_mask(
        self, conversations: Sequence[Sequence[Turn]]
    ) -> list[tuple[list[int], list[int]]]:
        """Tokens of each conversation, and where the template's marks begin."""
        if not conversations:
            return []
        found = self._apply(
            [_with_reply(turns) for turns in conversations],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        result = []
        for tokens, mask in zip(found["input_ids"], found["assistant_masks"], strict=True):
            before = [0, *mask[:-1]]
            result.append((tokens, [i for i, m in enumerate(mask) if m and not before[i]]))
        return result

    def _starts_by_prefix(
        self, conversations: Sequence[Sequence[Turn]]
    ) -> list[tuple[list[int], list[int]]]:
        """Tokens of each conversation, and where what follows an invitation begins."""
        whole = self._encoded([_with_reply(turns) for turns in conversations])
        before = [(row, index) for row, turns in enumerate(conversations) for index in _own(turns)]
        prefixes = self._invited([conversations[row][:index] for row, index in before])
        starts: list[list[int]] = [[] for _ in conversations]
        for (row, index), prefix in zip(before, prefixes, strict=True):
            if whole[row][: len(prefix)] != prefix:
                raise DialogueError(
                    f"the chat template lays out what comes before turn {index} "
                    f"({conversations[row][index].text[:40]!r}) in another way once the turn is "
                    "there, so it cannot be told which tokens are the agent's. Mark them in the "
                    "template with {% generation %}, or use a tokenizer without a chat template."
                )
            starts[row].append(len(prefix))
        return list(zip(whole, starts, strict=True))

    def _laid_out(self, turns: Sequence[Turn], tokens: list[int], starts: list[int]) -> LaidOut:
        own = _own(turns)
        if len(starts) != len(own):
            raise DialogueError(
                f"the chat template marks {len(starts)} stretches as generated in a conversation "
                f"with {len(own)} turns of the agent; there must be one for each."
            )
        wrote = [NOBODY] * len(tokens)
        stop = 0
        for index, start in zip(own, starts, strict=True):
            try:
                stop = tokens.index(self.end, start) + 1
            except ValueError:
                raise DialogueError(
                    f"the chat template does not end turn {index} "
                    f"({turns[index].text[:40]!r}) as it ends others."
                ) from None
            wrote[start:stop] = [index] * (stop - start)
        if own and own[-1] == len(turns) - 1:  # behind it is the reply that was put there
            return LaidOut(tokens[:stop], wrote[:stop])
        return LaidOut(tokens, wrote)

    def _end_token(self) -> int:
        """The first special token after an agent's words."""
        turns = (Turn("human", "a"), Turn("agent", "b"))
        [whole], [prefix] = self._encoded([_with_reply(turns)]), self._invited([turns[:1]])
        found = next((token for token in whole[len(prefix) :] if token in self._special), None)
        if found is None:
            raise DialogueError(
                "the chat template does not end an agent's turn with a special token, so an agent "
                "could not stop. Use another template, or a tokenizer without one."
            )
        return found

    def _invited(self, conversations: Sequence[Sequence[Turn]]) -> list[list[int]]:
        """Tokens of each conversation, and of what invites the agent to speak."""
        return self._encoded(conversations, add_generation_prompt=True)

    def _encoded(self, conversations: Sequence[Sequence[Turn]], **options: Any) -> list[list[int]]:
        if not conversations:
            return []
        texts = self._apply(conversations, tokenize=False, **options)
        # The template writes the special tokens that a text begins with.
        encoded = self._tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return [each.ids for each in encoded]

    def _apply(self, conversations: Sequence[Sequence[Turn]], **options: Any) -> Any:
        messages = [self._messages(turns) for turns in conversations]
        try:
            return self._tokenizer.apply_chat_template(messages, **options)
        except jinja2.TemplateError as error:
            raise DialogueError(
                f"the chat template cannot lay out a conversation: {error}. Use another template, "
                "or a tokenizer without one."
            ) from None

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, str]]:
        def broken_up(name: re.Match[str]) -> str:
            return f"{name[0][0]} {name[0][1:]}"

        return [
            {
                "role": ROLE_OF_SPEAKER[turn.speaker],
                "content": self._names.sub(broken_up, turn.text),
            }
            for turn in turns
        ]


def _own(turns: Sequence[Turn]) -> list[int]:
    """Which turns are the agent's."""
    return [index for index, turn in enumerate(turns) if turn.speaker == "agent"]


def _with_reply(turns: Sequence[Turn]) -> list[Turn]:
    """The agent's last turn as it will read once the human replied.

    Some templates (Qwen 3) lay out an answer in another way while it is the last.
    """
    last = turns[-1:] and turns[-1].speaker == "agent"
    return [*turns, Turn("human", ".")] if last else list(turns)


def _without_oldest(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Leaves out the oldest exchange, so that the same side begins: templates may demand it."""
    first = turns[0].speaker if turns else None
    later = turns[1:]
    while later and later[0].speaker != first:
        later = later[1:]
    return later
