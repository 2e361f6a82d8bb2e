"""Silence from libraries, in the terminal of a run (its bars: `ilql_jax/progress.py`)."""

from __future__ import annotations

import os
import warnings

from absl import logging


def quiet_libraries() -> None:
    """Hides remarks of libraries that are of no use to who runs an experiment."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # "PyTorch was not found"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", module="orbax")
