"""Offline RL for language models: losses, models, training, decoding.

Knows no dialogue, no task and no LLM API: it learns from `Trajectory`s. The names below are what
research code needs most; each is imported when it is first used, so that
`from ilql_jax import losses` pulls in jax and nothing of the rest.
"""

import importlib

_HOME = {
    "Batch": "batching",
    "DecoderConfig": "models",
    "DecodingConfig": "policy",
    "ModelConfig": "models",
    "ObjectiveConfig": "objectives",
    "PackingConfig": "batching",
    "Policy": "policy",
    "PreferencePair": "preferences",
    "TrainConfig": "train",
    "Trajectory": "trajectory",
    "TrajectoryError": "trajectory",
    "Transitions": "losses",
    "rollout": "environment",
    "cut_into_windows": "windows",
    "evaluate": "environment",
    "make_batches": "batching",
    "packing_for": "batching",
}
_MODULES = (
    "batching",
    "checkpoint",
    "chunks",
    "decode",
    "environment",
    "frozen",
    "losses",
    "models",
    "objectives",
    "plan",
    "policy",
    "preferences",
    "scoring",
    "sharding",
    "train",
    "trajectory",
    "windows",
)

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"ilql_jax.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"ilql_jax.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ilql_jax' has no attribute {name!r}")
