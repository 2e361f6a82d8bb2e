"""Dialogues of somebody's own, without a world and without an LLM: trained on, and judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launching import TINY, flattened, launch

SMALL = (
    *TINY,
    "--config.model.max_positions=128",
    "--config.tokenizer.vocab_size=400",
    "--config.evaluation.sample_replies=2",
)


def write(path: Path, count: int = 40) -> Path:
    lines = []
    for number in range(count):
        answer = "Thank you, gladly!" if number % 2 else "No, not today."
        messages = [
            {"role": "user", "content": "Good morning."},
            {"role": "assistant", "content": f"Would you give {number} to children?"},
            {"role": "user", "content": answer},
            {"role": "assistant", "content": "Goodbye."},
        ]
        lines.append(json.dumps({"messages": messages, "reward": float(number % 2)}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("task", ["own_data", pytest.param("teaching", marks=pytest.mark.slow)])
def test_a_file_is_enough(task: str, tmp_path: Path):
    path = write(tmp_path / "dialogues.jsonl")
    folder = tmp_path / "run"
    result = launch(
        f"--workdir={folder}",
        *SMALL,
        "--config.data.source=jsonl",
        f"--config.data.path={path}",
        *(["--config.data.loss_on=agent_last"] if task == "teaching" else []),
        task=task,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    heldout = json.loads((folder / "heldout.json").read_text())
    assert sum(heldout["sizes"].values()) == 40 and heldout["sizes"]["test"] > 0
    assert set(heldout["methods"]) == {"bc", "ilql"}
    assert heldout["methods"]["ilql"]["perplexity"] > 1
    assert all(point["auroc_v"] is not None for point in heldout["value_prediction"]["ilql"])
    assert heldout["discounts"] == {"ilql": {"factor": 0.99, "by_token": False}}
    assert heldout["pretrained_perplexity"] is None
    assert [set(each["replies"]) for each in heldout["moments"]] == [{"bc", "ilql"}] * 2
    replies = heldout["moments"][0]["replies"]
    assert replies["bc"]["q"] is None and replies["ilql"]["q"] is not None
    assert "success_reward: 0.5" in (folder / "task.yaml").read_text()
    assert '<h2 id="replies">' in (folder / "report.html").read_text()


def test_what_is_missing_is_told_before_training(tmp_path: Path):
    path = write(tmp_path / "dialogues.jsonl")
    lines = path.read_text().splitlines()
    lines[7] = json.dumps({"messages": json.loads(lines[7])["messages"]})
    path.write_text("\n".join(lines))
    folder = tmp_path / "run"
    arguments = (f"--workdir={folder}", *SMALL, f"--config.data.path={path}")
    result = launch(*arguments, task="own_data")
    assert result.returncode == 1
    assert "dialogues.jsonl, line 8: no reward" in flattened(result.stdout)
    assert not (folder / "checkpoints").exists() and not (folder / "dialogues.jsonl").exists()
