"""`datasets.load_dataset("json", ...)` reads a run's dialogues as they are, whoever made them."""

import dataclasses

import pytest
from imagination_client import FakeClient, failing_first_time, imagine

from imagination.dialogue import Dialogue, Turn, read_dialogues, write_dialogues

LONG = "word " * 1500  # 2,000 dialogues of it are more than `datasets` reads at first
MANY = 2000


@pytest.fixture
def load(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install -e '.[parity]'")

    def loaded(dialogues):
        path = tmp_path / "dialogues.jsonl"
        write_dialogues(path, dialogues)
        # Nothing is lost on the way, whatever the order.
        assert sorted(read_dialogues(path), key=str) == sorted(dialogues, key=str)
        cache = str(tmp_path / "cache")
        return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)

    return loaded


def repeated(dialogue: Dialogue) -> list[Dialogue]:
    """More of it than `datasets` learns the fields from."""
    turns = (Turn("human", LONG), *dialogue.turns)
    return [dataclasses.replace(dialogue, id=f"many-{i}", turns=turns) for i in range(MANY)]


def by_id(table) -> dict:
    return {record["id"]: record for record in table}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"way": "script", "rewards": "outcome"},
        {"way": "script", "also_rewards": ("judge", "outcome"), "critique_rounds": 2},
        {"critique_rounds": 0},
    ],
)
def test_imagined_dialogues_load(settings, load):
    dialogues = imagine(FakeClient(failing_first_time(1)), dialogues=18, **settings).dialogues
    table = load(dialogues)
    assert len(table) == 18
    for dialogue, record in zip(dialogues, table, strict=True):
        assert record["messages"] == dialogue.to_json()["messages"]
        assert record["persona"] == dialogue.persona and record["reward"] == dialogue.reward
        assert record["source"]["critique"]["rounds"] == dialogue.source["critique"]["rounds"]


def test_what_is_first_rewritten_late_loads(load):
    """The first 10 MB then know neither original turns nor who rewrote."""
    (smooth,) = imagine(FakeClient(), dialogues=1).dialogues
    (rewritten,) = imagine(FakeClient(failing_first_time(1)), dialogues=1).dialogues
    assert smooth.source["models"]["engine/refine"] is None
    table = load([*repeated(smooth), rewritten])
    assert len(table) == MANY + 1
    found = by_id(table)
    assert found["many-7"]["source"]["models"]["engine/refine"] is None
    assert found[rewritten.id]["source"]["models"]["engine/refine"] == "fake-1"
    assert found[rewritten.id]["source"]["critique"]["original"][0]["role"] == "user"


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"kind": "regenerated", "parent": "many-0", "turn": 3, "round": 1}},
        {"turns": (Turn("human", "Hi."), Turn("agent", "Ho.", annotations={"q": {"a": [0.5]}}))},
        *(
            pytest.param(change, marks=pytest.mark.slow)
            for change in (
                {"reward": 0.5},
                {"persona": {"mood": "low", "age": "old"}},
                {"turns": (Turn("human", "Hi."), Turn("agent", "Ho.", reward=0.1))},
                {"system": "You help."},
            )
        ),
    ],
)
def test_dialogues_of_another_shape_load_behind_many(change, load):
    plain = Dialogue("plain", "t", (Turn("agent", "Hello."),), None, {}, {"kind": "human"})
    other = dataclasses.replace(plain, id="other", **change)
    table = load([*repeated(plain), other])
    assert len(table) == MANY + 1
    found, expected = by_id(table)["other"], other.to_json()
    for field in ("reward", "persona", "source"):
        assert found[field] == expected[field], field
    for record, message in zip(found["messages"], expected["messages"], strict=True):
        assert {key: value for key, value in record.items() if value is not None} == message


def test_the_order_is_kept_where_the_beginning_shows_all_fields(tmp_path):
    plain = Dialogue("plain", "t", (Turn("agent", "Hello."),))
    few = [plain, dataclasses.replace(plain, id="other", reward=1.0)]
    write_dialogues(tmp_path / "few.jsonl", few)
    assert read_dialogues(tmp_path / "few.jsonl") == few
    many = [few[1], *repeated(plain), few[1]]
    write_dialogues(tmp_path / "many.jsonl", many)
    assert read_dialogues(tmp_path / "many.jsonl") == many
