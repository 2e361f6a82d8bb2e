"""A policy in a folder: `policy.json` (how it plays) and `policy.safetensors` (its parameters).

Nothing else is needed to play in another process, to the same bits: neither the training's
checkpoints nor the pretrained model that it started from.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.flax
from jaxtyping import Bool

from ilql_jax.errors import UserError
from ilql_jax.models import ModelConfig, Params, abstract_params

DESCRIPTION, PARAMETERS = "policy.json", "policy.safetensors"


class PolicyFolderError(UserError, RuntimeError):
    """A folder that holds no whole policy. The message names what is missing."""


@dataclasses.dataclass(frozen=True)
class PolicyDescription:
    """Everything that makes a network a policy; written to and read from `policy.json`.

    Attributes:
        model: Shape of the network.
        decoding: Rule by which utterances are chosen, the fields of a `DecodingConfig`.
        stop_token: Ends an utterance.
        allowed: Tokens that may be written, in rising order.
        max_utterance: Longest utterance, in tokens.
        reward_scale: Factor of the rewards in training.
        baseline: Value that heads of zero stand for, in the rewards' own unit.
        steered_by: Name of a method with a steering rule of its own (`Method.steer`); "" = the
            usual one.
        training: Origin of the policy, for people to read: method, settings, data.
    """

    model: ModelConfig
    decoding: Mapping[str, Any]
    stop_token: int
    allowed: tuple[int, ...]
    max_utterance: int
    reward_scale: float
    baseline: float
    steered_by: str
    training: Mapping[str, Any]

    @property
    def allowed_mask(self) -> Bool[np.ndarray, " vocab"]:
        """True for tokens that may be written."""
        return np.isin(np.arange(self.model.decoder.vocab_size), self.allowed)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {
            "model": dataclasses.asdict(self.model),
            "decoding": dict(self.decoding),
            "allowed": list(self.allowed),
            "training": dict(self.training),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> PolicyDescription:
        """Reads what `to_json` made."""
        return cls(
            **{
                **fields,
                "model": ModelConfig.from_dict(fields["model"]),
                "allowed": tuple(fields["allowed"]),
            }
        )


def save_policy(folder: str | Path, params: Params, description: PolicyDescription) -> None:
    """Writes both files; the description last, so that a folder with one is whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    safetensors.flax.save_file(
        {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)},
        folder / PARAMETERS,
    )
    text = json.dumps(description.to_json(), indent=2)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def load_policy(folder: str | Path) -> tuple[PolicyDescription, Params]:
    """Reads what `save_policy` wrote.

    Raises:
        PolicyFolderError: No such folder, a file or a field is missing, or the parameters are those
            of a network of another shape.
    """
    folder = Path(folder)
    for file in (folder, folder / DESCRIPTION, folder / PARAMETERS):
        if not file.exists():
            raise PolicyFolderError(
                f"{file}: not found. Give the folder that `fit(..., folder=...)` or `save_policy` "
                "has written to its end."
            )
    description = _read_description(folder / DESCRIPTION)
    try:
        tensors = safetensors.flax.load_file(folder / PARAMETERS)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise PolicyFolderError(f"{folder / PARAMETERS}: {error}. Save the policy again.") from None

    def tensor(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        given = tensors.get(_name(path))
        if given is None or given.shape != shape.shape:
            raise PolicyFolderError(
                f"{folder / PARAMETERS}: {_name(path)} has shape "
                f"{None if given is None else given.shape}, but the model of {DESCRIPTION} has "
                f"{shape.shape} (None = no such array). The two files belong to different policies."
            )
        return given

    params = jax.tree_util.tree_map_with_path(tensor, abstract_params(description.model))
    return description, params


def _read_description(file: Path) -> PolicyDescription:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"holds {str(fields)[:40]!r}, no fields by name")
    except (ValueError, RecursionError) as error:
        raise PolicyFolderError(f"{file}: {error}. Save the policy again.") from None
    known = {field.name for field in dataclasses.fields(PolicyDescription)}
    if missing := sorted(known - fields.keys()):
        raise PolicyFolderError(f"{file}: has no {', '.join(missing)}. Save the policy again.")
    if unknown := sorted(fields.keys() - known):
        raise PolicyFolderError(
            f"{file}: has {', '.join(unknown)}, which this version does not know. Use the version "
            "that wrote it."
        )
    try:
        return PolicyDescription.from_json(fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PolicyFolderError(f"{file}: {error!r}. Save the policy again.") from None


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
