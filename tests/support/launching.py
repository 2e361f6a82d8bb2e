"""Starts experiments as a user does, at tiny size: a process, its output, a made-up corpus."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import warm_start

ROOT = Path(__file__).parents[2]
TINY = (
    "--config.imagination.dialogues=200",
    "--config.train.steps=30",
    "--config.train.checkpoint_every=10",
    "--config.train.log_every=1",
    "--config.model.num_layers=1",
    "--config.model.hidden_size=16",
    "--config.model.mlp_size=32",
    "--config.model.num_heads=2",
    "--config.model.value_inner_size=16",
    "--config.evaluation.validation_episodes=2",
    "--config.evaluation.curve_episodes=0",
    "--config.evaluation.average_episodes=4",
    "--config.evaluation.difficult_episodes=3",
    "--config.evaluation.diagnosed_episodes=0",
    "--config.evaluation.sample_replies=0",
    "--config.decoding.batch_size=4",
    "--config.decoding.max_utterance=12",
    '--config.decoding.ilql=("sampled, best of 2",)',
    '--config.decoding.bc=("greedy",)',
    "--config.methods=bc,ilql",
    "--config.workers=1",
)


def command(*arguments: str, task: str = "teaching") -> list[str]:
    return [sys.executable, str(ROOT / "experiments" / f"{task}.py"), *arguments]


def launch(*arguments: str, task: str = "teaching", text: str = "") -> subprocess.CompletedProcess:
    return warm_start.run(
        command(*arguments, task=task),
        input=text,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "NO_COLOR": "1"},
        timeout=600,
    )


def flattened(output: str) -> str:
    """Terminal output with its line breaks undone."""
    return " ".join(output.split())


def write_corpus(folder: Path, dialogues: int = 40) -> Path:
    """A made-up corpus in the format of PersuasionForGood."""
    folder.mkdir()
    with (folder / "full_dialog.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["", "Unit", "Turn", "B4", "B2"])
        for d in range(dialogues):
            for turn in range(3):
                rows.writerow([d, f"Would you give {d} to children?", turn, 0, f"d{d}"])
                rows.writerow([d, "Yes!" if d % 2 else "No, not today.", turn, 1, f"d{d}"])
    with (folder / "full_info.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["B2", "B3", "B4", "B6"])
        for d in range(dialogues):
            rows.writerow([f"d{d}", "a", 0, 0.0])
            rows.writerow([f"d{d}", "b", 1, 700.0 if d % 2 else 0.0])
    return folder


# For runs whose dialogues come from an LLM on loopback (`world_llm.py`).
DESCRIPTION = "A travel agent finds out what a traveller would enjoy and recommends it."
TINY_IMAGINED = (
    "--config.train.steps=20",
    "--config.train.checkpoint_every=10",
    "--config.model.num_layers=1",
    "--config.model.hidden_size=16",
    "--config.model.mlp_size=32",
    "--config.model.value_inner_size=16",
    "--config.evaluation.validation_episodes=2",
    "--config.evaluation.curve_episodes=0",
    "--config.evaluation.average_episodes=4",
    "--config.evaluation.difficult_episodes=3",
    "--config.decoding.batch_size=4",
    "--config.decoding.max_utterance=12",
    '--config.decoding.ilql=("sampled, best of 2",)',
    "--config.methods=ilql",
    "--config.workers=1",
)
