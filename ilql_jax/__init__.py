"""Offline RL for language models: losses, models, training, decoding.

Knows no dialogue, no task and no LLM API: it learns from `Trajectory`s. The names below are what
research code needs most; each is imported when it is first used, so that
`from ilql_jax import losses` pulls in jax and nothing of the rest.
"""

import importlib

_HOME = {
    "METHODS": "methods",
    "Batch": "batching",
    "DecoderConfig": "models",
    "DecodingConfig": "policy",
    "Method": "methods",
    "ModelConfig": "models",
    "PackingConfig": "batching",
    "Policy": "policy",
    "PreferencePair": "preferences",
    "Preferences": "preferences",
    "SettingError": "settings",
    "Settings": "settings",
    "TrainConfig": "train_step",
    "Trajectory": "trajectory",
    "TrajectoryError": "trajectory",
    "Transitions": "losses",
    "rollout": "environment",
    "cut_into_windows": "windows",
    "evaluate": "environment",
    "fit": "fitting",
    "UserError": "errors",
    "load_method": "methods",
    "make_batches": "batching",
    "packing_for": "batching",
    "packing_for_pairs": "preferences",
    "restore_params": "checkpoint",
    "setting": "settings",
}
_MODULES = (
    "batching",
    "checkpoint",
    "chunked_cross_entropy",
    "decode",
    "environment",
    "errors",
    "fitting",
    "losses",
    "methods",
    "models",
    "partition",
    "plan",
    "policy",
    "policy_folder",
    "preferences",
    "scoring",
    "settings",
    "sharding",
    "train",
    "train_step",
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
