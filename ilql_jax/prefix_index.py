"""`PrefixIndex`: which conversations the prefix cache of a policy holds, and where."""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Assigned(NamedTuple):
    """Place of a conversation in the prefix cache.

    Attributes:
        source: Entry that holds its beginning.
        entry: Entry that is going to hold it.
        length: Number of its first tokens that need not be read.
    """

    source: int
    entry: int
    length: int


class PrefixIndex:
    """Maps conversations, by their tokens, to entries of the prefix cache.

    An entry holds the keys and values of one conversation. The one assigned longest ago is evicted
    first.

    Args:
        entries: Number of conversations that the cache has room for.
    """

    def __init__(self, entries: int):
        self.entries = entries
        self._entry_of: OrderedDict[bytes, int] = OrderedDict()  # tokens -> entry, oldest first
        self._lengths: Counter[int] = Counter()  # of those tokens, in bytes
        self._free = list(range(entries))[::-1]

    def known_length(self, context: Int[np.ndarray, " time"]) -> int:
        """Returns how many of its first tokens are in an entry."""
        return len(self._longest_prefix(context.tobytes())) // context.itemsize

    def assign(
        self, contexts: Sequence[Int[np.ndarray, " time"]], branches: bool = False
    ) -> list[Assigned]:
        """Returns an entry for each from now on, and what is known of it already.

        Args:
            contexts: Conversations that are going to be read, at most as many as there are entries.
            branches: Each gets an entry of its own beside that of its beginning, which others may
                begin with, too; else a conversation takes the entry over.
        """
        assigned = []
        for context in contexts:
            key = self._longest_prefix(context.tobytes())
            # The state after the last token is needed even where all of them are known.
            length = min(len(key) // context.itemsize, len(context) - 1)
            if key and branches:
                source = self._entry_of[key]
                self._entry_of.move_to_end(key)
                entry = self._any_entry()
            else:
                source = entry = self._evict(key) if key else self._any_entry()
            assigned.append(Assigned(source, entry, length))
        # Only now: the entries hold these conversations when all of them have been read.
        for context, (_, entry, _) in zip(contexts, assigned, strict=True):
            key = context.tobytes()
            if key in self._entry_of:  # two conversations with the same tokens
                self._free.append(self._evict(key))
            self._entry_of[key] = entry
            self._lengths[len(key)] += 1
        return assigned

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Frees the entries of what is read in the block at its end."""
        before = set(self._entry_of)
        yield
        for key in [key for key in self._entry_of if key not in before]:
            self._free.append(self._evict(key))

    def _longest_prefix(self, context: bytes) -> bytes:
        """Returns the longest beginning of the context that is in an entry."""
        for length in sorted(self._lengths, reverse=True):
            if context[:length] in self._entry_of:
                return context[:length]
        return b""

    def _any_entry(self) -> int:
        return self._free.pop() if self._free else self._evict(next(iter(self._entry_of)))

    def _evict(self, key: bytes) -> int:
        self._lengths[len(key)] -= 1
        if not self._lengths[len(key)]:
            del self._lengths[len(key)]
        return self._entry_of.pop(key)
