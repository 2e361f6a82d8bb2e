"""Looking ahead: candidates are judged by what they lead to, in imagined turns.

A network that learned to predict the other side's words (`observation_loss_weight`) can imagine
them. After each candidate u it writes some replies, and after each reply h' its own best utterance:

    value(u) = Q(h, u) + Σ_k γ^k E[max_u' Q(h_k, u') − V(h_k)]        k = 1 .. turns ahead

Q takes the course of the data for granted from h_1 on, as good as V is. The sum adds what choosing
by Q brings there (the performance difference lemma; Kakade & Langford, 2002, lemma 6.1), so neither
rewards nor whole conversations have to be imagined. A conversation that is over brings nothing
more: the network says how probable that is.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

Tokens = Int[np.ndarray, " time"]

NEXT_CANDIDATES = 4  # of an imagined turn: written for each candidate and each reply to it


@dataclasses.dataclass(frozen=True)
class Replies:
    """Layout of what the other side says, between two utterances of the agent.

    Attributes:
        opens: Tokens before its words, at least one.
        stop: Token that ends its words.
        closes: Tokens from there to the agent's next utterance.
        over: Token in the place of the first that opens where the conversation has ended.
        allowed: Tokens that its words may have, in rising order.
        max_length: Longest reply that is imagined, in tokens, `stop` included.
    """

    opens: tuple[int, ...]
    stop: int
    closes: tuple[int, ...]
    over: int
    allowed: tuple[int, ...]
    max_length: int

    def mask(self, vocab_size: int) -> Bool[np.ndarray, " vocab"]:
        """True for tokens that its words may have, and for the one that ends them."""
        return np.isin(np.arange(vocab_size), [*self.allowed, self.stop])

    def end_mask(self, vocab_size: int) -> Bool[np.ndarray, " vocab"]:
        """True for the two tokens of which one follows the agent: the turn's first, and `over`."""
        return np.isin(np.arange(vocab_size), [self.opens[0], self.over])

    @property
    def room(self) -> int:
        """Tokens of the longest reply, with all between the agent's utterances."""
        return len(self.opens) + self.max_length + len(self.closes)


class Said(NamedTuple):
    """An utterance that was written.

    Attributes:
        tokens: int32 [S], the stop token included.
        q: Value of it, in the unit that values are given in.
        log_prob: log π_β of it (unsteered).
    """

    tokens: Tokens
    q: float
    log_prob: float = 0.0


class Best(NamedTuple):
    """The agent's best utterance in an imagined state, and V there."""

    tokens: Tokens
    q: float
    v: float


class Imagination(NamedTuple):
    """A network's three answers, each in batches; contexts are tokens, seeds one each.

    Attributes:
        ends: Probability that the conversation is over after each context, which the agent ended.
        replies: So many replies to each context, which ends with `Replies.opens`.
        best: The agent's best utterance in each context.
    """

    ends: Callable[[Sequence[Tokens]], Sequence[float]]
    replies: Callable[[Sequence[Tokens], Sequence[int], int], Sequence[Sequence[Tokens]]]
    best: Callable[[Sequence[Tokens], Sequence[int]], Sequence[Best]]


class _Path(NamedTuple):
    """An imagined course: where it began, all that was said, and its share of the expectation."""

    conversation: int
    candidate: int
    tokens: Tokens
    share: float


def look_ahead(
    imagination: Imagination,
    layout: Replies,
    contexts: Sequence[Tokens],
    candidates: Sequence[Sequence[Said]],
    seeds: Sequence[int],
    *,
    turns: int,
    replies: int,
    discount: float,
    longest: int,
) -> list[list[float]]:
    """Values of candidates after looking ahead.

    Args:
        imagination: Network that imagines.
        layout: Layout of the other side's turns.
        contexts: Each conversation so far.
        candidates: Those of each conversation, all different.
        seeds: One a conversation, on which with its context alone its values depend.
        turns: Turns of the agent that are imagined.
        replies: Replies imagined to each candidate; further on to each utterance one.
        discount: γ from one utterance of the agent to the next.
        longest: Most tokens of a context. A conversation one of whose candidates might lead beyond
            is judged by Q alone: candidates are compared on equal terms.

    Returns:
        A value for each candidate.
    """
    values = [[said.q for said in own] for own in candidates]
    paths = [
        _Path(i, j, np.concatenate([context, said.tokens]), 1.0)
        for i, (context, own) in enumerate(zip(contexts, candidates, strict=True))
        if len(own) > 1
        and len(context) + max(len(said.tokens) for said in own) + layout.room <= longest
        for j, said in enumerate(own)
    ]
    for turn in range(1, turns + 1):
        paths = [path for path in paths if len(path.tokens) + layout.room <= longest]
        if not paths:
            break
        paths = _replied(imagination, layout, paths, seeds, turn, replies if turn == 1 else 1)
        answers = _distinct(
            imagination.best, paths, [_seed(seeds[path.conversation], turn) for path in paths]
        )
        for path, best in zip(paths, answers, strict=True):
            gain = path.share * discount**turn * (best.q - best.v)
            values[path.conversation][path.candidate] += gain
        paths = [
            path._replace(tokens=np.concatenate([path.tokens, best.tokens]))
            for path, best in zip(paths, answers, strict=True)
        ]
    return values


def _replied(
    imagination: Imagination,
    layout: Replies,
    paths: Sequence[_Path],
    seeds: Sequence[int],
    turn: int,
    count: int,
) -> list[_Path]:
    """Courses that go on with so many replies to each."""
    ends = imagination.ends([path.tokens for path in paths])
    opened = [np.append(path.tokens, layout.opens).astype(np.int32) for path in paths]
    # The same luck for all candidates: those that differ in wording alone get like replies.
    luck = [_seed(seeds[path.conversation], -turn) for path in paths]
    written = imagination.replies(opened, luck, count)
    return [
        path._replace(
            tokens=np.concatenate([before, reply, layout.closes]).astype(np.int32),
            share=path.share * (1 - end) / count,
        )
        for path, end, before, own in zip(paths, ends, opened, written, strict=True)
        for reply in own
    ]


def _distinct(
    best: Callable[[Sequence[Tokens], Sequence[int]], Sequence[Best]],
    paths: Sequence[_Path],
    seeds: Sequence[int],
) -> list[Best]:
    """Answers each state once, however many courses lead to it."""
    first: dict[tuple[bytes, int], int] = {}
    for index, (path, seed) in enumerate(zip(paths, seeds, strict=True)):
        first.setdefault((path.tokens.tobytes(), seed), index)
    chosen = list(first.values())
    answers = best([paths[i].tokens for i in chosen], [seeds[i] for i in chosen])
    known = dict(zip(first, answers, strict=True))
    return [known[path.tokens.tobytes(), seed] for path, seed in zip(paths, seeds, strict=True)]


def _seed(seed: int, turn: int) -> int:
    return zlib.crc32(f"{seed}/{turn}".encode())
