"""Runs experiments in the tests' own process: quicker than a process each."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

from experiments import launch
from experiments.teaching import get_config

# The smallest run with a checkpoint before the last.
SMALLEST = (
    "--config.imagination.dialogues=40",
    "--config.train.steps=4",
    "--config.train.checkpoint_every=2",
    "--config.train.warmup_steps=1",
    "--config.train.optimizer=adamw",
    "--config.train.log_every=1",
    "--config.model.hidden_size=16",
    "--config.model.mlp_size=16",
    "--config.model.num_layers=1",
    "--config.model.value_inner_size=8",
    "--config.tokenizer.vocab_size=600",
    "--config.model.max_positions=320",
    "--config.evaluation.curve_episodes=0",
    "--config.evaluation.average_episodes=2",
    "--config.evaluation.difficult_episodes=2",
    "--config.evaluation.diagnosed_episodes=0",
    "--config.decoding.batch_size=4",
    "--config.decoding.max_utterance=4",
    '--config.decoding.bc=("greedy",)',
    "--config.methods=bc",
    "--config.workers=1",
)


class Ended(NamedTuple):
    """End of a run: its exit status, its output, and the traceback of a bug, if any."""

    status: int
    output: str
    traceback: str


def run(folder: Path, *arguments: str) -> Ended:
    """Runs teaching in this process, with an output that is not broken into lines."""
    output = io.StringIO()
    before, sys.argv = sys.argv, ["teaching.py", f"--workdir={folder}", *arguments]
    status, trace = 0, ""
    try:
        with contextlib.redirect_stdout(output), warnings.catch_warnings(action="ignore"):
            launch.main("teaching", get_config())
    except SystemExit as ended:
        status = ended.code
    except Exception:
        status, trace = 1, traceback.format_exc()
    finally:
        sys.argv = before
    return Ended(status, " ".join(output.getvalue().split()), trace)
