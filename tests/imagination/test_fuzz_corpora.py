"""Damaged files of published corpora: told with file and place, or read into dialogues of use."""

import json
import random

import pytest
from fuzzing import damaged_bytes, held, with_odd_value

from imagination.corpora import CORPORA, CorpusError, ReadOptions
from imagination.dialogue import read_dialogues, write_dialogues

ESCONV_RECORD = {
    "experience_type": "Previous Experience",
    "emotion_type": "anxiety",
    "problem_type": "job crisis",
    "situation": "I may lose my job.",
    "survey_score": {
        "seeker": {"initial_emotion_intensity": "5", "final_emotion_intensity": "2"},
        "supporter": {"relevance": "5"},
    },
    "dialog": [
        {"speaker": "seeker", "annotation": {}, "content": "Hello\n"},
        {"speaker": "supporter", "annotation": {"strategy": "Question"}, "content": "Hi! é 😀"},
        {"speaker": "seeker", "annotation": {"feedback": "4"}, "content": "I am afraid."},
        {"speaker": "supporter", "annotation": {}, "content": "I see."},
    ],
}
DIALOG = """,Unit,Turn,B4,B2
0,Hello! Do you know the charity?,0,0,d1
1,No,0,1,d1
2,"It helps children, everywhere.",1,0,d1
3,I give a dollar,1,1,d1
4,Good morning é,0,0,d2
5,Hi,0,1,d2
"""
INFO = """B2,B3,B4,B5,B6,age.x,sex.x
d1,u1,0,5,0.0,30.0,Male
d1,u2,1,5,1.0,40.0,Female
d2,u3,0,5,0,,
d2,u4,1,5,0.5,22,Other
"""


def usable(corpus: str, path, again):
    dialogues = CORPORA[corpus].read(path, ReadOptions()).dialogues
    write_dialogues(again, dialogues)
    assert read_dialogues(again) == dialogues


def test_damaged_esconv_is_told_or_read(tmp_path):
    path, record = tmp_path / "ESConv.json", json.dumps(ESCONV_RECORD)
    for seed in range(120):
        rng = random.Random(seed)
        if seed < 80:
            path.write_text(f"[{record},\n{with_odd_value(rng, ESCONV_RECORD)}]", encoding="utf-8")
        else:
            path.write_bytes(damaged_bytes(rng, f"[{record},\n{record}]".encode()))
        with held("ESConv", seed, names="ESConv.json"):
            usable("esconv", path, tmp_path / "again.jsonl")


ODD_CELLS = ("", " ", "nan", "inf", "1e999", "-1", "9" * 5000, "x", '"', '""', "a,b", "0x1", "\0")
ODD_CELLS += (
    "\ud83d".encode("utf-8", "surrogatepass").decode("latin-1"),
    "é",
    "1_0",
    "٣",
    "2" * 140_000,
)


def test_damaged_persuasion_for_good_is_told_or_read(tmp_path):
    for seed in range(120):
        rng = random.Random(seed)
        files = {"full_dialog.csv": DIALOG.encode(), "full_info.csv": INFO.encode()}
        name = rng.choice(list(files))
        if seed < 70:
            rows = [line.split(",") for line in files[name].decode().splitlines()]
            row = rng.choice(rows)
            row[rng.randrange(len(row))] = rng.choice(ODD_CELLS)
            files[name] = "\n".join(map(",".join, rows)).encode()
        else:
            files[name] = damaged_bytes(rng, files[name])
        for each, content in files.items():
            (tmp_path / each).write_bytes(content)
        with held("PersuasionForGood", seed, names=name):
            usable("persuasionforgood", tmp_path, tmp_path / "again.jsonl")


@pytest.mark.parametrize("corpus", list(CORPORA))
def test_a_path_that_is_no_corpus_is_told(corpus, tmp_path):
    (tmp_path / "ESConv.json").mkdir()
    (tmp_path / "full_dialog.csv").mkdir()
    for path in (tmp_path, tmp_path / "none", tmp_path / "ESConv.json", tmp_path / ("x" * 5000)):
        with held("ESConv" if corpus == "esconv" else "PersuasionForGood", str(path)[:80]):
            CORPORA[corpus].read(path, ReadOptions())
            raise AssertionError("there is no corpus")


def test_deep_and_long_files_are_told(tmp_path):
    path = tmp_path / "ESConv.json"
    for text in ("[" * 100_000, f"[{'9' * 5000}]", '[{"dialog": NaN}]', '[{"dialog": 1e999}]'):
        path.write_text(text)
        with pytest.raises(CorpusError, match=r"ESConv\.json"):
            CORPORA["esconv"].read(path, ReadOptions())
