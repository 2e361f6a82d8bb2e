"""Readers of published human dialogue data, and how to split a corpus.

A corpus is read from the files exactly as its authors published them; the data is not part of this
repository. What comes out are ordinary dialogues (`dialogue.py`) of kind "human", which go on to
`tokenization.py` like any others. One file each; `corpus.py` has what they share.
"""

from imagination.corpora.corpus import CorpusError, split_dialogues
from imagination.corpora.persuasion_for_good import (
    PERSUASION_FOR_GOOD_HELP,
    read_persuasion_for_good,
)

__all__ = [
    "PERSUASION_FOR_GOOD_HELP",
    "CorpusError",
    "read_persuasion_for_good",
    "split_dialogues",
]
