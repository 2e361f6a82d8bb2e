"""Readers of published human dialogue data, and how to split a corpus.

    corpus = CORPORA["esconv"]
    reading = corpus.read(Path("ESConv.json"), ReadOptions(missing_outcome="drop"))
    parts = split_dialogues(reading.dialogues, {"train": 0.8, "test": 0.2}, seed=0)

A corpus is read from the files exactly as its authors published them; the data is not part of this
repository. What comes out are ordinary dialogues (`dialogue.py`) of kind "human", which go on to
`tokenization.py` like any others. One file each, which also says what the corpus is about (its
`Task`) and what its licence allows; `corpus.py` has what they share.
"""

from imagination.corpora.corpus import (
    MISSING_OUTCOME,
    Corpus,
    CorpusError,
    Reading,
    ReadOptions,
    split_dialogues,
)
from imagination.corpora.esconv import ESCONV, ESCONV_HELP, read_esconv
from imagination.corpora.persuasion_for_good import (
    PERSUASION_FOR_GOOD,
    PERSUASION_FOR_GOOD_HELP,
    read_persuasion_for_good,
)

CORPORA = {corpus.name: corpus for corpus in (PERSUASION_FOR_GOOD, ESCONV)}

__all__ = [
    "CORPORA",
    "ESCONV",
    "ESCONV_HELP",
    "MISSING_OUTCOME",
    "PERSUASION_FOR_GOOD",
    "PERSUASION_FOR_GOOD_HELP",
    "Corpus",
    "CorpusError",
    "ReadOptions",
    "Reading",
    "read_esconv",
    "read_persuasion_for_good",
    "split_dialogues",
]
