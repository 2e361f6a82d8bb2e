"""Reading PersuasionForGood: small excerpts written by hand, and the real files where present."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from imagination.corpora import (
    PERSUASION_FOR_GOOD,
    CorpusError,
    ReadOptions,
    read_persuasion_for_good,
    split_dialogues,
)
from imagination.dialogue import Dialogue, Turn, read_dialogues, write_dialogues

DIALOG = """\
,Unit,Turn,B4,B2
0,Hello there.,0,0,d1
1,  How   are you?  ,0,0,d1
2,"Fine, thanks.",0,1,d1
3,Would you give?,1,0,d1
4,,1,1,d1
5,Maybe.,1,1,d1
6,Hi!,0,0,d2
7,Yes.,0,1,d2
"""
INFO = """\
B2,B3,B4,B6,extrovert.x,age.x,sex.x
d1,user_1,0,0.5,3.2,40.0,Male
d1,user_2,1,100.0,3.4,28.0,
d2,user_3,0,0.0,,,
d2,user_4,1,0.0,,,
"""


@pytest.fixture
def read(tmp_path):
    def read(dialog=DIALOG, info=INFO, encoding="utf-8", **options):
        paths = tmp_path / "full_dialog.csv", tmp_path / "full_info.csv"
        for path, text in zip(paths, (dialog, info), strict=True):
            path.write_bytes(text.encode(encoding))
        return read_persuasion_for_good(*paths, **options)

    return read


class TestReading:
    def test_utterances_in_a_row_become_one_turn(self, read):
        first, second = read()
        assert first.turns == (
            Turn("agent", "Hello there. How are you?"),
            Turn("human", "Fine, thanks."),
            Turn("agent", "Would you give?"),
            Turn("human", "Maybe."),
        )
        assert [turn.text for turn in second.turns] == ["Hi!", "Yes."]

    def test_reward_is_the_persuadees_donation_capped(self, read):
        assert [dialogue.reward for dialogue in read()] == [2.0, 0.0]
        assert [dialogue.reward for dialogue in read(max_donation=150.0)] == [100.0, 0.0]

    def test_source_keeps_the_donations_as_made(self, read):
        assert read()[0].source == {
            "kind": "human",
            "corpus": "PersuasionForGood",
            "donation": 100.0,
            "persuader_donation": 0.5,
            "persuadee": "user_2",
            "persuader": "user_1",
        }

    def test_persona_is_what_the_persuadee_filled_in(self, read):
        first, second = read()
        assert first.persona == {"age": "28", "extroversion": "3.4"}
        assert second.persona == {}

    def test_capped_donations_are_counted(self, read, tmp_path):
        read()
        reading = PERSUASION_FOR_GOOD.read(tmp_path, ReadOptions())
        assert [dialogue.reward for dialogue in reading.dialogues] == [2.0, 0.0]
        assert reading.notes == (
            "1 of 2 persuadees gave more than 2 dollars (up to 100); their reward is 2.",
        )
        assert PERSUASION_FOR_GOOD.read(tmp_path, ReadOptions(max_reward=150.0)).notes == ()

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
    def test_encodings_that_spreadsheets_save(self, read, encoding):
        first = read(DIALOG.replace("Maybe.", "Café – “maybe”."), encoding=encoding)[0]
        assert first.turns[-1].text == "Café – “maybe”."

    def test_windows_line_ends_and_line_breaks_inside_an_utterance(self, read):
        dialog = DIALOG.replace("Maybe.", '"May\nbe."').replace("\n", "\r\n")
        assert read(dialog)[0].turns[-1].text == "May be."

    def test_escapes_and_mangled_signs_of_the_published_files_are_undone(self, read):
        dialog = DIALOG.replace("Maybe.", r"I don\'t ¡ª it\\\'s ¡ê3.")
        assert read(dialog)[0].turns[-1].text == "I don't — it's £3."

    def test_survives_the_way_to_disk(self, read, tmp_path):
        dialogues = read()
        write_dialogues(tmp_path / "dialogues.jsonl", dialogues)
        assert read_dialogues(tmp_path / "dialogues.jsonl") == dialogues


class TestBrokenFiles:
    def test_missing_files_say_where_to_get_them(self, tmp_path):
        (tmp_path / "full_dialog.csv").write_text(DIALOG)
        with pytest.raises(CorpusError) as caught:
            read_persuasion_for_good(tmp_path / "full_dialog.csv", tmp_path / "full_info.csv")
        message = str(caught.value)
        assert f"No such file: {tmp_path / 'full_info.csv'}." in message
        for word in ("1906.06725", "Apache", "https://gitlab.com/", "--config.data.path"):
            assert word in message

    @pytest.mark.parametrize(
        "dialog, message",
        [
            ("", "full_dialog.csv: missing columns B2, B4, Turn, Unit; found none"),
            ("Unit,Turn,B2\nHi,0,d1\n", "missing columns B4; found Unit, Turn, B2"),
            ("Unit,Turn,B4,B2\n", "full_dialog.csv: no dialogue below the header"),
            (DIALOG.replace("d1", "d9"), "line 2: dialogue 'd9' has no line for its persuadee"),
            (DIALOG.replace("Maybe.,1,1", "Maybe.,1,2"), "line 7, column B4: .*, got '2'"),
            (DIALOG.replace("Maybe.,1", "Maybe.,x"), "line 7, column Turn: .*, got 'x'"),
            (DIALOG + DIALOG.split("\n", 1)[1], "line 10, column Turn: .* 'd1', got '0'"),
            (DIALOG.replace("Hi!,0,0", "Hi!,0,1"), r"line 8 the persuader \(B4 = 0\) never speaks"),
            (
                DIALOG.replace("d2\n7", "d2\n8,Hm.,0,0,d2\n7").replace("Hi!,0,0", "Hi!,0,1"),
                "swapped",
            ),
            (DIALOG.replace("Yes.", ""), r"line 8 the persuadee \(B4 = 1\) never speaks"),
            (DIALOG.replace("Maybe.", "Well, no."), "line 7: 6 fields where the header has 5"),
            (DIALOG.replace("Maybe.", '"Maybe.'), "not valid CSV .* line 7"),
            (DIALOG.replace("Hi!,0,0,d2", "Hi!,0,0, "), "line 8, column B2: .*, got ''"),
        ],
    )
    def test_dialog_file(self, read, dialog, message):
        with pytest.raises(CorpusError, match=message):
            read(dialog=dialog)

    @pytest.mark.parametrize("donation", ["", "two", "-1", "nan", "inf"])
    def test_donation_names_file_line_and_value(self, read, donation):
        info = INFO.replace("100.0", donation)
        with pytest.raises(CorpusError, match=rf"info.csv, line 3, column B6: .*'{donation}'"):
            read(info=info)

    @pytest.mark.parametrize(
        "info, message",
        [
            ("B2,B6\nd1,0\n", "full_info.csv: missing columns B4; found B2, B6"),
            (INFO.replace("user_1,0", "user_1,agent"), "line 2, column B4: .*, got 'agent'"),
            (INFO.replace("user_1,0", "user_1,1"), "line 3, column B2, B4: .*, got 'd1, 1'"),
        ],
    )
    def test_info_file(self, read, info, message):
        with pytest.raises(CorpusError, match=message):
            read(info=info)

    @pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
    def test_cap_must_be_positive(self, read, cap):
        with pytest.raises(CorpusError, match="max_donation must be a positive number"):
            read(max_donation=cap)


FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}
DIALOGUES = [
    Dialogue(f"d{i}", "persuasion", (Turn("agent", "Hi"),), reward=float(i % 2)) for i in range(200)
]


class TestSplit:
    def test_every_dialogue_once_in_the_shares_asked_for(self):
        parts = split_dialogues(DIALOGUES, FRACTIONS, seed=0)
        sizes = {name: len(part) for name, part in parts.items()}
        assert sizes == {"train": 160, "validation": 20, "test": 20}
        ids = [dialogue.id for part in parts.values() for dialogue in part]
        assert sorted(ids) == sorted(dialogue.id for dialogue in DIALOGUES)

    def test_every_part_has_its_share_of_donors(self):
        for part in split_dialogues(DIALOGUES, FRACTIONS, seed=0).values():
            assert np.mean([dialogue.reward for dialogue in part]) == 0.5

    def test_depends_on_the_seed_and_not_on_the_order(self):
        split = split_dialogues(DIALOGUES, FRACTIONS, seed=0)
        assert split == split_dialogues(DIALOGUES[::-1], FRACTIONS, seed=0)
        assert split != split_dialogues(DIALOGUES, FRACTIONS, seed=1)

    @pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}])
    def test_shares_must_sum_to_one(self, fractions):
        with pytest.raises(ValueError, match="shares from 0 up that sum to 1"):
            split_dialogues(DIALOGUES, fractions, seed=0)

    def test_ids_must_be_unique(self):
        with pytest.raises(ValueError, match="'d3' occurs more than once"):
            split_dialogues([*DIALOGUES, DIALOGUES[3]], FRACTIONS, seed=0)


def published_files() -> tuple[Path, Path]:
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "persuasionforgood"
    folder = Path(os.environ.get("PERSUASION_FOR_GOOD", beside))
    return folder / "full_dialog.csv", folder / "full_info.csv"


@pytest.mark.skipif(
    not all(path.is_file() for path in published_files()),
    reason="PersuasionForGood is not here: set PERSUASION_FOR_GOOD to the folder of its two files",
)
def test_the_published_files():
    dialogues = read_persuasion_for_good(*published_files())
    rewards = np.array([dialogue.reward for dialogue in dialogues])
    assert len({dialogue.id for dialogue in dialogues}) == 1017
    assert np.mean(rewards > 0) == pytest.approx(0.536, abs=0.005)
    assert rewards.min() == 0 and rewards.max() == 2
    assert max(dialogue.source["donation"] for dialogue in dialogues) == 700
    for dialogue in dialogues:
        speakers = [turn.speaker for turn in dialogue.turns]
        assert all(a != b for a, b in itertools.pairwise(speakers))
