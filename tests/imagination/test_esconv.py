"""Reading ESConv: small excerpts written by hand, and the real file where present."""

import copy
import dataclasses
import io
import itertools
import json
import os
from collections import Counter
from pathlib import Path

import evaluations
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from experiments.checks import checked
from experiments.config import ConfigError, base_config
from experiments.evaluation import heldout
from experiments.report import tables
from experiments.run_folder import RunFolder
from experiments.stages import imagine
from experiments.tasks import corpus_task
from imagination.corpora import (
    CORPORA,
    ESCONV,
    PERSUASION_FOR_GOOD,
    Corpus,
    CorpusError,
    ReadOptions,
    read_esconv,
)
from imagination.dialogue import Turn, read_dialogues, write_dialogues
from imagination.task import Task
from imagination.tokenization import DialogueTokenizer


def said(speaker: str, content: str, **annotation) -> dict:
    return {"speaker": speaker, "annotation": annotation, "content": content}


RECORD = {
    "experience_type": "Current Experience",
    "emotion_type": "anxiety",
    "problem_type": "job crisis",
    "situation": "My boss  shouts.",
    "survey_score": {
        "seeker": {
            "initial_emotion_intensity": "5",
            "empathy": "4",
            "relevance": "5",
            "final_emotion_intensity": "2",
        },
        "supporter": {"relevance": "5"},
    },
    "dialog": [
        said("seeker", "Hello\n"),
        said("supporter", "Hi.", strategy="Questions"),
        said("supporter", " \n", strategy="Other"),
        said("supporter", "What  is it?\n", strategy="Reflection of feelings"),
        said("seeker", "My boss.", feedback="4"),
        said("seeker", "He shouts."),
        said("supporter", "That is hard.", strategy="Approval and Reassurance"),
    ],
}


del_ = object()


def changed(*path_and_value, record=RECORD) -> dict:
    """The record with another value at this place; `del_` takes it away."""
    *path, key, value = path_and_value
    record = copy.deepcopy(record)
    inner = record
    for step in path:
        inner = inner[step]
    if value is del_:
        del inner[key]
    else:
        inner[key] = value
    return record


FINAL = ("survey_score", "seeker", "final_emotion_intensity")


@pytest.fixture
def write(tmp_path):
    def write(*records, name="ESConv.json", encoding="utf-8", ascii_only=True) -> Path:
        text = json.dumps(list(records), ensure_ascii=ascii_only)
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    return write


class TestReading:
    def test_utterances_in_a_row_become_one_turn_with_their_strategies(self, write):
        (dialogue,) = read_esconv(write(RECORD))
        assert dialogue.turns == (
            Turn("human", "Hello"),
            Turn(
                "agent",
                "Hi. What is it?",
                annotations={"strategies": ["Question", "Reflection of feelings"]},
            ),
            Turn("human", "My boss. He shouts."),
            Turn(
                "agent",
                "That is hard.",
                annotations={"strategies": ["Affirmation and Reassurance"]},
            ),
        )

    def test_what_is_known_of_the_seeker_and_of_the_dialogue(self, write):
        (dialogue,) = read_esconv(write(RECORD))
        assert dialogue.id == "ESConv-0" and dialogue.task == "counseling"
        assert dialogue.persona == {
            "problem_type": "job crisis",
            "emotion_type": "anxiety",
            "experience_type": "Current Experience",
            "initial_intensity": "5",
        }
        assert dialogue.source == {
            "kind": "human",
            "corpus": "ESConv",
            "file": "ESConv.json",
            "situation": "My boss shouts.",
            "survey": {
                "seeker": {
                    "initial_emotion_intensity": 5,
                    "empathy": 4,
                    "relevance": 5,
                    "final_emotion_intensity": 2,
                },
                "supporter": {"relevance": 5},
            },
            "feedback": [{"turn": 2, "score": 4}],
        }

    def test_only_words_and_the_reward_reach_the_learner(self, write):
        (dialogue,) = read_esconv(write(RECORD))
        turns = tuple(dataclasses.replace(turn, annotations={}) for turn in dialogue.turns)
        bare = dataclasses.replace(dialogue, turns=turns, persona={}, source={})
        tokenizer, other = (DialogueTokenizer.train([d], 300, 1) for d in (dialogue, bare))
        # Nor the vocabulary: the name of a strategy must not have become a token.
        said = [Turn("human", "Reflection of feelings")]
        assert np.array_equal(tokenizer.context(said), other.context(said))
        all_known, words_alone = tokenizer.trajectories([dialogue, bare])
        for name in ("tokens", "is_action", "rewards"):
            assert np.array_equal(getattr(all_known, name), getattr(words_alone, name)), name
        said = all_known.tokens[all_known.is_action]
        assert tokenizer.decode(said) == "Hi. What is it? That is hard."

    @pytest.mark.parametrize(
        "final, reward", [("1", 1.0), (2, 0.75), ("3.0", 0.5), ("4", 0.25), ("5", 0.0)]
    )
    def test_reward_is_how_far_the_intensity_fell(self, write, final, reward):
        assert read_esconv(write(changed(*FINAL, final)))[0].reward == reward

    def test_a_feeling_that_grew_stronger_is_worth_nothing_and_counted(self, write):
        worse = changed("survey_score", "seeker", "initial_emotion_intensity", "1")
        reading = ESCONV.read(write(RECORD, worse), ReadOptions())
        assert [dialogue.reward for dialogue in reading.dialogues] == [0.75, 0.0]
        assert reading.notes == (
            "In 1 of 2 rated dialogues the feeling grew stronger; their reward is 0, as where it "
            "stayed.",
        )

    def test_speakers_as_the_failed_conversations_call_them(self, write):
        names = {"seeker": "speaker", "supporter": "listener"}
        dialog = [{**each, "speaker": names[each["speaker"]]} for each in RECORD["dialog"]]
        failed = write({**RECORD, "dialog": dialog}, name="FailedESConv.json")
        (other,) = read_esconv(failed)
        (dialogue,) = read_esconv(write(RECORD))
        assert other.turns == dialogue.turns

    def test_a_folder_means_the_files_in_it(self, write, tmp_path):
        write(RECORD, RECORD, name="FailedESConv.json")
        assert [d.id for d in read_esconv(tmp_path)] == ["FailedESConv-0", "FailedESConv-1"]
        write(RECORD)
        ids = [dialogue.id for dialogue in read_esconv(tmp_path)]
        assert ids == ["ESConv-0", "FailedESConv-0", "FailedESConv-1"]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
    def test_encodings(self, write, encoding):
        record = changed("dialog", 0, "content", "Café – “maybe”.")
        path = write(record, encoding=encoding, ascii_only=False)
        assert read_esconv(path)[0].turns[0].text == "Café – “maybe”."

    def test_survives_the_way_to_disk_even_with_half_a_sign(self, write, tmp_path):
        dialogues = read_esconv(write(changed("dialog", 0, "content", "so \ud83d sad")))
        assert dialogues[0].turns[0].text == "so ? sad"
        write_dialogues(tmp_path / "dialogues.jsonl", dialogues)
        assert read_dialogues(tmp_path / "dialogues.jsonl") == dialogues


SILENT_SURVEYS = [
    changed(*FINAL, del_),
    changed(*FINAL, None),
    changed(*FINAL, " "),
    changed("survey_score", "seeker", "initial_emotion_intensity", del_),
    changed("survey_score", "seeker", {}),
    changed("survey_score", del_),
    changed("survey_score", None),
]


class TestMissingOutcome:
    def test_is_no_reward(self, write):
        dialogues = read_esconv(write(RECORD, *SILENT_SURVEYS))
        assert [dialogue.reward for dialogue in dialogues] == [0.75] + [None] * len(SILENT_SURVEYS)

    def test_dropped_or_taken_as_unchanged_and_counted(self, write):
        path = write(RECORD, *SILENT_SURVEYS)
        dropped = ESCONV.read(path, ReadOptions(missing_outcome="drop"))
        kept = ESCONV.read(path, ReadOptions(missing_outcome="unchanged"))
        assert [dialogue.reward for dialogue in dropped.dialogues] == [0.75]
        assert [dialogue.reward for dialogue in kept.dialogues] == [0.75] + [0.0] * 7
        assert "7 of 8 dialogues do not tell" in dropped.notes[0] + kept.notes[0]
        assert "left out" in dropped.notes[0] and "reward 0" in kept.notes[0]
        tokenizer = DialogueTokenizer.train(kept.dialogues, 300)
        assert len(tokenizer.trajectories(kept.dialogues)) == 8

    def test_where_nothing_is_left_the_way_out_is_named(self, write):
        with pytest.raises(CorpusError, match=r"none of 1 dialogues.*missing_outcome=unchanged"):
            ESCONV.read(write(SILENT_SURVEYS[0]), ReadOptions())

    def test_unknown_choice(self):
        with pytest.raises(CorpusError, match="'guess', but must be one of drop, unchanged"):
            ReadOptions(missing_outcome="guess")


SEEKERS = [each for each in RECORD["dialog"] if each["speaker"] == "seeker"]
SWAPPED = {"seeker": "supporter", "supporter": "seeker"}


class TestBrokenFiles:
    @pytest.mark.parametrize("path", ["ESConv.json", "."])
    def test_missing_files_say_where_to_get_them(self, tmp_path, path):
        with pytest.raises(CorpusError) as caught:
            read_esconv(tmp_path / path)
        for words in (str(tmp_path), "github.com/thu-coai", "CC BY-NC 4.0", "--config.data.path"):
            assert words in str(caught.value)

    @pytest.mark.parametrize(
        "text, message",
        [
            ("", "line 1: not valid JSON"),
            ('[{"a": 1},\n <html>', "line 2: not valid JSON .*column 2"),
            ("{}", "expected a list of dialogues, got '{}'"),
            ("[]", "expected a list of dialogues"),
        ],
    )
    def test_not_such_a_file(self, tmp_path, text, message):
        (tmp_path / "ESConv.json").write_text(text)
        with pytest.raises(CorpusError, match=message) as caught:
            read_esconv(tmp_path)
        assert "github.com/thu-coai" in str(caught.value)

    @pytest.mark.parametrize(
        "record, message",
        [
            ("hello", "expected an object, got 'hello'"),
            (changed("dialog", del_), "field 'dialog': expected a list .*, got 'None'"),
            (changed("dialog", SEEKERS), "the supporter never speaks"),
            (changed("dialog", RECORD["dialog"][1:4]), "the seeker never speaks"),
            (changed("dialog", []), "never speaks"),
            (changed("dialog", 0, "content", 7), r"'dialog\[0\].content': .* got '7'"),
            (changed("dialog", 1, "speaker", "usr"), r"'dialog\[1\].speaker': .* got 'usr'"),
            (changed("dialog", 1, "speaker", ["seeker"]), r"'dialog\[1\].speaker'"),
            (changed("dialog", 1, "annotation", "x"), r"'dialog\[1\].annotation': .* got 'x'"),
            (changed("dialog", 4, "annotation", {"feedback": "good"}), "feedback': .* got 'good'"),
            (changed("survey_score", [1]), "'survey_score': expected an object"),
            (changed("survey_score", "seeker", "5"), "'survey_score.seeker': expected an object"),
            (changed("emotion_type", 3), "'emotion_type': expected text, got '3'"),
        ],
    )
    def test_says_file_dialogue_field_and_value(self, write, record, message):
        path = write(RECORD, record)
        with pytest.raises(CorpusError, match=message) as caught:
            read_esconv(path)
        assert str(caught.value).startswith(f"{path}, dialogue 1 (the first is 0)")
        assert "delete the dialogue" in str(caught.value)

    @pytest.mark.parametrize("value", ["six", "6", 0, -1, 2.5, True, "nan", "inf", [3], 10**400])
    def test_scores_that_are_none(self, write, value):
        field = "'survey_score.seeker.final_emotion_intensity': expected a whole number from 1 to 5"
        with pytest.raises(CorpusError, match=field) as caught:
            read_esconv(write(changed(*FINAL, value)))
        assert f"got '{str(value)[:10]}" in str(caught.value)

    def test_swapped_sides_are_noticed_by_their_annotations(self, write):
        dialog = [{**each, "speaker": SWAPPED[each["speaker"]]} for each in RECORD["dialog"]]
        with pytest.raises(CorpusError, match=r"dialog\[1\].annotation.strategy.*sides swapped"):
            read_esconv(write({**RECORD, "dialog": dialog}))
        with pytest.raises(CorpusError, match=r"dialog\[0\].annotation.feedback.*sides swapped"):
            read_esconv(write({**RECORD, "dialog": dialog[4:]}))


@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)
def test_every_corpus_says_what_it_is_about_and_what_it_allows(corpus: Corpus):
    task = corpus.task(ReadOptions())
    assert Task.from_yaml(task.to_yaml()) == task
    assert task.success and corpus.licence and corpus.homepage.startswith("https://")
    assert CORPORA[corpus.name] is corpus


def test_the_scale_of_donations_ends_where_they_are_capped():
    assert PERSUASION_FOR_GOOD.task(ReadOptions(max_reward=5.0)).reward_range == (0.0, 5.0)
    assert PERSUASION_FOR_GOOD.task(ReadOptions(max_reward=0.005)).success_reward == 0.005


def config_for(path: Path, **data) -> ConfigDict:
    config = base_config()
    config.data.source = "esconv"
    config.data.path = str(path)
    config.data.update(data)
    return config


class TestInARun:
    def test_dialogues_task_and_card(self, write, tmp_path):
        records = [changed("survey_score", "seeker", "empathy", 1 + i % 5) for i in range(10)]
        config = config_for(write(*records, SILENT_SURVEYS[0]))
        experiment = checked(config)
        folder = RunFolder(tmp_path / "run")
        console = Console(file=io.StringIO(), width=200)
        imagine.run(experiment, folder, console)
        dialogues = read_dialogues(folder.dialogues)
        assert Counter(d.source["part"] for d in dialogues) == {"train": 8, "test": 2}
        assert corpus_task(experiment.data) == Task.load(folder.task)
        for text in (folder.dataset_card.read_text(), console.file.getvalue()):
            assert "CC BY-NC 4.0" in text and "1 of 11 dialogues do not tell" in text

    @pytest.mark.parametrize(
        "data, message",
        [
            ({"source": "esc"}, "must be world, jsonl, persuasionforgood or esconv"),
            ({"missing_outcome": "zero"}, "config.data.missing_outcome is 'zero'"),
            ({"max_reward": 0.0}, "config.data.max_reward is 0.0"),
        ],
    )
    def test_settings_that_cannot_be(self, data, message):
        with pytest.raises(ConfigError, match=message):
            checked(config_for(Path("ESConv.json"), **data))

    def test_held_out_results_say_what_a_success_is(self, write):
        records = [changed(*FINAL, str(final)) for final in (5, 5, 4, 1)]
        dialogues = read_esconv(write(*records))
        task = ESCONV.task(ReadOptions())
        success = heldout.success_of(task, dialogues)
        note = tables.success_note(dataclasses.replace(evaluations.heldout(), success=success))
        assert "weaker than before by at least one point" in note
        assert "a reward of 0.25 or more; 50 % of the test dialogues" in note


def published_file() -> Path:
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "esconv"
    return Path(os.environ.get("ESCONV", beside)) / "FailedESConv.json"


@pytest.mark.skipif(
    not published_file().is_file(),
    reason="ESConv is not here: set ESCONV to the folder with FailedESConv.json",
)
def test_the_published_file():
    dialogues = read_esconv(published_file())
    assert len(dialogues) == 196
    rewards = Counter(dialogue.reward for dialogue in dialogues)
    assert rewards == {None: 54, 0.0: 111, 0.25: 15, 0.5: 7, 0.75: 5, 1.0: 4}
    strategies = {
        s for d in dialogues for t in d.turns for s in t.annotations.get("strategies", ())
    }
    assert strategies == {
        "Question",
        "Restatement or Paraphrasing",
        "Reflection of feelings",
        "Self-disclosure",
        "Affirmation and Reassurance",
        "Providing Suggestions",
        "Information",
        "Other",
    }
    assert sum(len(dialogue.source["feedback"]) for dialogue in dialogues) == 987
    for dialogue in dialogues:
        speakers = [turn.speaker for turn in dialogue.turns]
        assert all(a != b for a, b in itertools.pairwise(speakers))
