"""`Method`: what a training learns, as a value that `train` takes.

A method is its config, a loss, and what it requires of data, network and decoding. Each of ours is
a file beside this one (`ilql.py` is the one to start from); one of your own is a .py file that
defines `METHOD`, read by `load_method`. `METHODS` in `methods/__init__.py` lists ours.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Array, Float

from ilql_jax import losses
from ilql_jax.decode import Steer
from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.errors import UserError, shown
from ilql_jax.models import ModelConfig
from ilql_jax.own_file import defined_in
from ilql_jax.settings import SettingError, Settings, setting
from ilql_jax.trajectory import Trajectory

Metrics = dict[str, Array]  # name -> scalar
DATA_KINDS = ("dialogues", "pairs")


class MethodError(UserError, ValueError):
    """A method that cannot be used, or not with this network, data or decoding."""


@dataclasses.dataclass(frozen=True)
class MethodConfig(Settings):
    """Settings that all methods of this package have."""

    action_chunk: int = setting(
        "Decisions whose scores over the whole vocabulary are in memory of a device together; at "
        "least one a row.",
        1024,
        least=1,
        shapes_result=False,
    )


@dataclasses.dataclass(frozen=True)
class DialogueConfig(MethodConfig):
    """Settings of the methods that learn from whole dialogues."""

    observation_loss_weight: float = setting(
        "Weight of the loss of predicting what the agent reads (the other side's words) against "
        "the policy's: the network infers the state behind them, for values to tell apart. `fit` "
        "takes 1.",
        0.0,
        least=0,
    )


@dataclasses.dataclass(frozen=True)
class TrainOverrides(Settings):
    """Changes to an experiment's shared training, for a method that goes on from another's."""

    steps: int = setting("Optimizer steps.", least=1)
    learning_rate_factor: float = setting("Factor of the peak learning rates.", above=0)


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of learning from dialogues.

    Attributes:
        name: In `METHODS`, on command lines and in the names of folders: small letters, digits and
            underscores.
        title: In tables and figures.
        config: The method's own settings, a frozen dataclass.
        loss: `loss(model, target, batch, config, *, progress, normalizers) -> loss, metrics`.
            `model` is the `ActorCritic` that learns, `target` the same network with the
            Polyak-averaged groups in place (no gradient reaches it), `batch` a `Batch` or
            `PreferenceBatch`, `progress` the fraction of the training done, and `normalizers` what
            sums over decisions are divided by (see `loss_terms.Normalizers`). Loss and metrics are
            scalars, each a sum over decisions divided by a normalizer: with gradient accumulation
            those of a batch's parts are added up.
        learns_from: "dialogues" (`Trajectory`s), or "pairs" (`Preferences`).
        learns_values: True where Q and V are learned beside the policy, so that decodings may ask
            them. Without, the network has no trunk for values.
        polyak_averaged: Groups of parameters (top-level names: "q", "v", "trunk", "value_trunk")
            of which the training state has a slowly moving copy.
        select: `select(trajectories, config)` gives the trajectories learned from, chosen or
            reweighted; None = all. `train` applies it, once.
        network: `network(model_config, config)` gives the network that is trained, or raises where
            the method cannot do with it; None = as given, without a trunk for values where none
            are learned.
        steer: Logits of the steered policy, from those of the policy, Q, V and strength (see
            `decode.Steer`); for `Policy`.
        values_need_cloning: True where values are read beside the policy's probabilities (Q-SFT),
            so that both have to learn from the same turns: what is valued is cloned, too.
        values_by_token: `values_by_token(config)` tells whether Q is a value of every token, so
            that it can steer them; None = never.
        decodings: Ways of choosing words that are tried by default (see `DecodingConfig.parse`).
        color: In figures, "#rrggbb" on light paper.
        marker: In figures, one of Matplotlib's.
        starts_from: Name of a method whose training of the same seed this one goes on from; None =
            from the start that all share.
        train: Changes to an experiment's shared training, or None.
        going_on: `going_on(config)` gives the config of a training that goes on from one of this
            method, e.g. without what belongs to a fresh start; None = the same.
    """

    name: str
    title: str
    config: Settings
    loss: Callable[..., tuple[Float[Array, ""], Metrics]]
    learns_from: str = "dialogues"
    learns_values: bool = False
    polyak_averaged: tuple[str, ...] = ()
    select: Callable[[Sequence[Trajectory], Any], list[Trajectory]] | None = None
    network: Callable[[ModelConfig, Any], ModelConfig] | None = None
    values_need_cloning: bool = False
    values_by_token: Callable[[Any], bool] | None = None
    steer: Steer = losses.steer_logits
    decodings: tuple[str, ...] = ("sampled", "sampled at 0.5", "greedy")
    color: str = "#8a929f"
    marker: str = "o"
    starts_from: str | None = None
    train: TrainOverrides | None = None
    going_on: Callable[[Any], Settings] | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise MethodError(
                f"a method's name is {self.name!r}, but must name a folder: small letters, digits "
                "and underscores, a letter first."
            )
        if not dataclasses.is_dataclass(self.config) or isinstance(self.config, type):
            raise MethodError(
                f"{self.name}: config is {self.config!r}, but must be an instance of a dataclass."
            )
        if self.learns_from not in DATA_KINDS:
            raise MethodError(
                f"{self.name}: learns_from is {self.learns_from!r}, but must be "
                f"{' or '.join(DATA_KINDS)}."
            )
        for decoding in map(DecodingConfig.parse, self.decodings):
            if decoding.reads_values and not self.learns_values:
                raise MethodError(
                    f"{self.name}: the decoding {str(decoding)!r} needs values, but learns_values "
                    "is false."
                )

    def configured(self, **changes: Any) -> Method:
        """A copy with other settings.

        Raises:
            SettingError: A value that a setting cannot have.
            MethodError: There is no such setting.
        """
        names = [field.name for field in dataclasses.fields(self.config)]
        if unknown := [name for name in changes if name not in names]:
            raise MethodError(
                f"{self.name} has no setting {unknown[0]!r}; there are {', '.join(names)}."
            )
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    def when_going_on(self) -> Method:
        """The method for a training that goes on from one of the same method.

        Raises:
            MethodError: Its `going_on` sets what cannot be.
        """
        if self.going_on is None:
            return self
        try:
            return dataclasses.replace(self, config=self.going_on(self.config))
        except SettingError as error:
            raise MethodError(f"{self.name}: going_on: {error}") from error

    @property
    def values_every_token(self) -> bool:
        """True if Q is a value of every token, so that it can steer them."""
        return self.values_by_token is not None and self.values_by_token(self.config)

    @property
    def predicts_observations(self) -> bool:
        """True if the network learns to say what the other side says."""
        return isinstance(self.config, DialogueConfig) and self.config.observation_loss_weight > 0

    def select_trajectories(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """Trajectories that are learned from, of these."""
        return self.select(trajectories, self.config) if self.select else list(trajectories)

    def network_for(self, config: ModelConfig) -> ModelConfig:
        """The network that is trained, of an experiment's shared shape."""
        if self.network:
            return self.network(config, self.config)
        return config if self.learns_values else dataclasses.replace(config, value_trunk="shared")

    def check_network(self, config: ModelConfig) -> None:
        """Raises `MethodError` if the network is not the one that the method trains."""
        fitting = self.network_for(config)
        for field in dataclasses.fields(config):
            given, right = getattr(config, field.name), getattr(fitting, field.name)
            if given != right:
                why = "" if self.learns_values else " learns no values and"
                raise MethodError(
                    f"{field.name} is {given!r}, but {self.name}{why} trains a network with "
                    f"{right!r}: give it `method.network_for(config)`."
                )

    def check_decoding(self, decoding: DecodingConfig) -> None:
        """Raises `MethodError` if the decoding asks for what is not learned."""
        if decoding.reads_values and not self.learns_values:
            raise MethodError(f"{str(decoding)!r} needs values, and {self.name} learns none.")
        if decoding.steering_strength and not self.values_every_token:
            raise MethodError(
                f"{str(decoding)!r} needs values of every token, but those of {self.name} are of "
                "whole utterances: set its credit to 'token'."
            )
        if decoding.lookahead and self.values_every_token:
            raise MethodError(
                f"{str(decoding)!r} compares the value of an utterance with that of the state "
                f"before it, but {self.name} discounts from token to token between them: set its "
                "credit to 'utterance'."
            )
        if decoding.lookahead and not self.predicts_observations:
            raise MethodError(
                f"{str(decoding)!r} imagines what the other side says, which {self.name} does not "
                "learn: set its observation_loss_weight above 0 (1 is usual)."
            )


def check_method(value: Any) -> None:
    """Raises `MethodError` for what is no `Method`."""
    if not isinstance(value, Method):
        name = f'"{value}"' if isinstance(value, str) else '"ilql"'
        raise MethodError(
            f"method is {shown(value, 100, repr)}, but must be a `Method`: one of METHODS, as "
            f'METHODS[{name}], or of a file, as load_method("sarsa.py").'
        )


def read_method(path: str | Path, taken: Collection[str]) -> Method:
    """Executes a .py file and returns the `Method` that it defines as `METHOD`.

    Args:
        path: Path of the file. Give only files that you trust: it is run.
        taken: Names that the method may not have.

    Raises:
        MethodError: No such file, it raises, it defines no `METHOD` or one that is no `Method`, or
            its name is taken.
    """
    method = defined_in(path, "METHOD", MethodError)
    if not isinstance(method, Method):
        raise MethodError(f"{path}: METHOD is a {type(method).__name__}, but must be a `Method`.")
    if method.name in taken:
        raise MethodError(
            f"{path}: the name {method.name!r} is taken by another method. Choose another."
        )
    return method
