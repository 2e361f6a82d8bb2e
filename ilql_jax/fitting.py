"""`fit`: from episodes to a policy that plays, in one call.

It makes the choices that everybody has to make: the network, rewards of unit spread, values that
start at the lowest return, windows of episodes that are too long, the shape of the batches. Each is
an argument, and kept in the policy's folder. Whoever wants to make them himself calls
`train.train`, which this calls; `environment.py` plays the policy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ilql_jax import losses
from ilql_jax.batching import lowest_return, packing_for, utterance_bounds
from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.environment import Evaluation
from ilql_jax.errors import UserError, shown
from ilql_jax.methods import Method, method_named
from ilql_jax.methods.method import DialogueConfig, check_method
from ilql_jax.models import ModelConfig, Params
from ilql_jax.models.hugging_face.read import find, shape_for, start_params
from ilql_jax.models.lora import merge_adapters
from ilql_jax.models.network_config import SMALL_NETWORK, network_config
from ilql_jax.policy import Policy
from ilql_jax.policy_checks import learned_values
from ilql_jax.policy_folder import PolicyDescription, save_policy
from ilql_jax.train import check_tokens, train
from ilql_jax.train_step import TrainConfig
from ilql_jax.trajectory import Trajectory, TrajectoryError, validate_all
from ilql_jax.windows import cut_into_windows

PASSES, LEAST_STEPS, MOST_STEPS = 8, 3000, 9000
BATCH_TOKENS = 1024
LARGEST_REWARD = 1e30  # sums and squares of which float32 can still hold, once they are scaled
Validate = Callable[[Policy], Evaluation | float]


class FitError(UserError, ValueError):
    """Arguments of `fit` that do not belong together. The message names them."""


def small_network(vocab_size: int, max_positions: int = 256, **changes: Any) -> ModelConfig:
    """Shape of a network that learns on a laptop: two layers of width 64 with four heads, rotary
    positions.

    Args:
        vocab_size: Number of tokens.
        max_positions: Longest context, in tokens.
        changes: Fields of `ModelConfig` or of its `DecoderConfig` that are to be others.
    """
    # Four heads put together what stands far apart (marks of guesses) in fewer steps than two.
    settings = {**SMALL_NETWORK, "num_heads": 4, "max_positions": max_positions, **changes}
    return network_config(settings, vocab_size)


def fit(
    trajectories: Sequence[Trajectory],
    *,
    vocab_size: int,
    stop_token: int,
    method: str | Method = "ilql",
    steps: int | None = None,
    network: ModelConfig | str | os.PathLike[str] | None = None,
    max_positions: int = 256,
    allowed: Bool[np.ndarray, " vocab"] | None = None,
    max_utterance: int | None = None,
    decoding: DecodingConfig | str | None = None,
    reward_scale: float | str = "unit_spread",
    baseline: float | str = "lowest_return",
    token_discount: float = 0.99,
    utterance_discount: float = 0.99,
    observation_loss_weight: float | None = None,
    context: int | None = None,
    batch_rows: int | None = None,
    training: TrainConfig | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    validate: Validate | None = None,
    validate_every: int = 500,
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
    progress: bool = True,
) -> Policy:
    """Learns a policy from episodes.

    A call with the same arguments and folder goes on from the last checkpoint, or loads what is
    finished.

    Args:
        trajectories: Whole episodes, rewards in any unit. Those longer than the context are cut
            into windows, whose returns are those of the whole episode.
        vocab_size: Number of tokens; all ids are below it.
        stop_token: Ends every action of the agent.
        method: Name in `METHODS`, a .py file that defines METHOD, or a `Method`, e.g.
            `METHODS["ilql"].configured(expectile=0.9)`.
        steps: Optimizer steps; by default as many as read what is learned from eight times, but at
            least 3,000 and at most 9,000.
        network: Shape of a fresh network (`small_network` by default), or the folder or name of a
            pretrained one.
        max_positions: Longest context of the network in tokens, the next action included; not read
            where `network` is a shape.
        allowed: bool [vocab], tokens that the policy may write; by default those that the agent
            writes in the data.
        max_utterance: Longest action, the stop token included; by default the longest in the data.
        decoding: Rule by which actions are chosen, as config or text ("sampled at 0.6, best of
            16"). By default, with `validate`, the one that it judges best after the training: of
            the method's own, and of the policy alone at their temperatures, which values must not
            be worse than. Without `validate` nothing is tried: sampled, or for methods that learn
            values the last of their own.
        reward_scale: Factor of the rewards in training: "unit_spread" = one over the standard
            deviation of the episodes' returns, which the defaults of the methods are made for.
            Values are told in the rewards' own unit all the same. (Q-SFT learns probabilities and
            scales returns itself: its values are fractions of the way from the worst return to the
            best.)
        baseline: Value that the value heads start at, in the rewards' own unit; "lowest_return" =
            the lowest discounted return of any decision in the data. Heads that start at 0 would
            take what was never tried for better than all that was, where rewards are costs.
        token_discount: γ from one agent token to the next (values of tokens).
        utterance_discount: γ from one action to the next (values of utterances).
        observation_loss_weight: Weight of the loss of predicting observations against the policy's,
            by which the network learns to infer a state that is not shown; by default 1, or what
            the config of `method` has where that is above 0.
        context: Most tokens that a window shows before the first decision it learns from; half of
            the network's context by default.
        batch_rows: Rows in a batch, each as long as the network's context (of a pretrained one
            `max_positions`), filled with episodes; by default as many as hold 1,024 tokens, at
            least 4.
        training: Optimizer, learning rates and the like, given instead of `steps`.
        seed: Seeds the initial weights and the order of the data.
        folder: Checkpoints and the policy go there; a temporary folder, removed again, by default.
        validate: Judges the policy during training, e.g. by `environment.evaluate`; its result goes
            to `on_metrics` as "validation/return". As long as values have learned nothing, it gets
            the policy without them. The training is the same with and without. It also chooses the
            decoding where none is given.
        validate_every: Steps between validations.
        on_metrics: Called with a step and its metrics.
        progress: Show a bar in the terminal.

    Returns:
        The policy. `Policy.load(folder)` gives the same one in another process.

    Raises:
        TrajectoryError: No data, data that breaks the contract, has tokens outside of the
            vocabulary, never ends an action with the stop token, has a turn that does not fit in
            a window, or rewards that are all 0 for a method that learns values; before anything is
            compiled, as the others.
        FitError: Arguments that do not belong together.
        UserError: What `train.train` and `Policy` refuse.
    """
    method = _method(method)
    _check_types(network, decoding, training)
    _check_functions(validate=validate, on_metrics=on_metrics)
    _check_numbers(
        whole={
            "vocab_size": (vocab_size, 1),
            "stop_token": (stop_token, 0),
            "max_positions": (max_positions, 1),
            "max_utterance": (1 if max_utterance is None else max_utterance, 1),
            "context": (0 if context is None else context, 0),
            "batch_rows": (1 if batch_rows is None else batch_rows, 1),
            "validate_every": (validate_every, 1),
            "seed": (seed, 0),
        },
        discounts={"token_discount": token_discount, "utterance_discount": utterance_discount},
    )
    model, start_from = _network(network, method, vocab_size, max_positions, seed)
    method = _with_observations(method, observation_loss_weight)
    trajectories = _checked(list(trajectories), vocab_size, stop_token)
    longest = max(int(np.diff(_edges(each)).max()) + 1 for each in trajectories)
    max_utterance = longest if max_utterance is None else int(max_utterance)
    tried = decodings_tried(method) if validate and decoding is None else ()
    decoding = _decoding(decoding, method)
    _check_rewards(trajectories, method)
    if model.value_heads == "probabilities":  # the method brings returns to [0, 1] itself
        reward_scale, baseline = _left_to_method(method, reward_scale, baseline)
    scale = _scale(reward_scale, trajectories)
    by_token = method.values_every_token
    discount = token_discount if by_token else utterance_discount
    start_value = _baseline(baseline, trajectories, by_token, discount)
    description = PolicyDescription(
        model=model,
        decoding=dataclasses.asdict(decoding),
        stop_token=int(stop_token),  # a number of NumPy is no JSON
        allowed=_allowed(allowed, trajectories, vocab_size, model),
        max_utterance=max_utterance,
        reward_scale=scale,
        baseline=start_value,
        steered_by="" if method.steer is losses.steer_logits else method.name,
        training={"method": method.name, "settings": dataclasses.asdict(method.config)},
    )
    _check_room(model, max_utterance, trajectories)
    if training is not None and steps is not None:
        raise FitError(f"steps is {steps} and training has {training.steps}; give one of them.")
    # A pretrained network may be able to read far more than these episodes need.
    length = max_positions if start_from else model.decoder.max_positions
    # Filtered BC and the like look at episodes, not at windows.
    selected = method.select_trajectories([_scaled(each, scale) for each in trajectories])
    data = [window for each in selected for window in cut_into_windows(each, length, context)]
    rows = max(4, BATCH_TOKENS // length) if batch_rows is None else batch_rows
    if training is None:
        training = TrainConfig(steps=_steps(data, rows * length) if steps is None else steps)
    packing = packing_for(
        data, rows, length, token_discount, utterance_discount, scale * start_value
    )

    def described(how: DecodingConfig) -> PolicyDescription:
        return dataclasses.replace(description, decoding=dataclasses.asdict(how))

    def judged(params: Params, how: DecodingConfig) -> float:
        return _score(validate(_policy(described(how), params, method)))

    scores: dict[DecodingConfig, float] = {}  # of the finished network

    def validated(step: int, params: Params) -> dict[str, float]:
        score = judged(params, decoding)
        if step == training.steps:
            scores[decoding] = score
        return {"return": score}

    with _folder(folder) as path:
        params = train(
            data,
            model,
            dataclasses.replace(method, select=None),
            training,
            packing,
            seed,
            path / "checkpoints",
            metadata={"reward_scale": scale, "baseline": start_value},
            on_metrics=on_metrics,
            validate=validated if validate else None,
            validate_every=validate_every,
            start_from=start_from,
            progress=progress,
        )
        scores |= {each: judged(params, each) for each in tried if each not in scores}
        best = max(tried, key=scores.__getitem__, default=decoding)
        merged, params = merge_adapters(model, params)
        description = dataclasses.replace(described(best), model=merged)
        save_policy(path, params, description)
        return Policy.load(path, steer=method.steer)


# --- choices ------------------------------------------------------------------------------------


def _with_observations(method: Method, weight: float | None) -> Method:
    """The method with the weight of the loss of observations, as `fit` takes it."""
    if not isinstance(method.config, DialogueConfig):
        if weight is not None:
            raise FitError(
                f"observation_loss_weight is {weight!r}, but {method.name} has no such loss. Leave "
                "it out, or derive the method's config from DialogueConfig."
            )
        return method
    weight = (method.config.observation_loss_weight or 1.0) if weight is None else weight
    return method.configured(observation_loss_weight=weight)


def _method(method: str | Method) -> Method:
    if isinstance(method, str):
        method = method_named(method)
    check_method(method)
    if method.learns_from != "dialogues":
        raise FitError(
            f"method {method.name!r} learns from {method.learns_from}, but fit gets episodes. Use "
            "`train.train` with `Preferences`, or another method."
        )
    return method


def _network(
    network: ModelConfig | str | os.PathLike[str] | None,
    method: Method,
    vocab_size: int,
    max_positions: int,
    seed: int,
) -> tuple[ModelConfig, Callable[[], Params] | None]:
    """Shape of the network, and what makes the parameters to start from (None = fresh)."""
    how = "last" if method.values_every_token else "sum"
    if network is None:
        return method.network_for(small_network(vocab_size, max_positions, utterance_q=how)), None
    if isinstance(network, ModelConfig):
        if network.decoder.vocab_size < vocab_size:
            raise FitError(
                f"vocab_size is {vocab_size}, but the network has {network.decoder.vocab_size} "
                "tokens. Give it as many."
            )
        return method.network_for(network), None
    decoder = shape_for(network, max_positions)
    decoder = dataclasses.replace(decoder, vocab_size=max(vocab_size, decoder.vocab_size))
    shape = method.network_for(ModelConfig(decoder, decoder.hidden_size, how))
    return shape, lambda: start_params(find(network), shape, seed)


def _decoding(decoding: DecodingConfig | str | None, method: Method) -> DecodingConfig:
    if decoding is None:
        decoding = method.decodings[-1 if method.learns_values else 0]
    if isinstance(decoding, str):
        decoding = DecodingConfig.parse(decoding)
    method.check_decoding(decoding)
    if decoding.lookahead:
        raise FitError(
            f"decoding '{decoding}' looks ahead, for which it has to be known how the other side's "
            "turns are laid out: that is so in dialogues (experiments/), not in environments. "
            "Leave out 'looking ahead by ...'."
        )
    return decoding


def decodings_tried(method: Method) -> tuple[DecodingConfig, ...]:
    """Decodings to choose among: `fit`'s default, the others of the method, and those without
    values."""
    own = [_decoding(None, method), *map(DecodingConfig.parse, method.decodings)]
    return tuple(dict.fromkeys([*own, *(each.without_values for each in own)]))


def _steps(data: Sequence[Trajectory], batch_tokens: int) -> int:
    tokens = sum(len(each.tokens) for each in data)
    return min(max(math.ceil(PASSES * tokens / batch_tokens), LEAST_STEPS), MOST_STEPS)


def _left_to_method(
    method: Method, scale: float | str, baseline: float | str
) -> tuple[float, float]:
    for name, value, default in (
        ("reward_scale", scale, "unit_spread"),
        ("baseline", baseline, "lowest_return"),
    ):
        if value != default:
            raise FitError(
                f"{name} is {value!r}, but {method.name} learns probabilities and scales the "
                "returns itself. Leave it out."
            )
    return 1.0, 0.0


def _scale(scale: float | str, trajectories: Sequence[Trajectory]) -> float:
    if scale == "unit_spread":
        spread = float(np.std([each.total_reward for each in trajectories]))
        return 1.0 / spread if spread > 1e-6 else 1.0
    if not isinstance(scale, numbers.Real) or not 0 < scale < math.inf:
        raise FitError(f"reward_scale is {scale!r}, but must be 'unit_spread' or above 0.")
    return float(scale)


def _baseline(
    baseline: float | str, trajectories: Sequence[Trajectory], by_token: bool, discount: float
) -> float:
    if baseline == "lowest_return":
        return lowest_return(trajectories, by_token, discount)
    if not isinstance(baseline, numbers.Real) or not math.isfinite(baseline):
        raise FitError(f"baseline is {baseline!r}, but must be 'lowest_return' or a number.")
    return float(baseline)


def _allowed(
    allowed: Bool[np.ndarray, " vocab"] | None,
    trajectories: Sequence[Trajectory],
    vocab_size: int,
    model: ModelConfig,
) -> tuple[int, ...]:
    if allowed is None:
        allowed = np.zeros(vocab_size, bool)
        for each in trajectories:
            allowed[each.tokens[each.is_action]] = True
    allowed = np.asarray(allowed)
    sizes = {(vocab_size,), (model.decoder.vocab_size,)}
    if allowed.shape not in sizes or allowed.dtype != bool:
        raise FitError(
            f"allowed has shape {allowed.shape} and type {allowed.dtype}, but must say of each of "
            f"the {vocab_size} tokens, by True or False, whether the policy may write it."
        )
    if not np.any(allowed):
        raise FitError("allowed is false for all tokens: the policy could write none. Allow some.")
    return tuple(np.flatnonzero(allowed).tolist())


# --- checks -------------------------------------------------------------------------------------


def _check_types(network: Any, decoding: Any, training: Any) -> None:
    """Raises `FitError` for arguments of another type."""
    for name, value, kinds, expected in (
        ("network", network, (ModelConfig, str, os.PathLike), "a `ModelConfig`, a folder or name"),
        ("decoding", decoding, (DecodingConfig, str), "a `DecodingConfig`, or text as 'greedy'"),
        ("training", training, TrainConfig, "a `TrainConfig`"),
    ):
        if value is not None and not isinstance(value, kinds):
            raise FitError(f"{name} is {shown(value, 100, repr)}, but must be {expected}.")


def _check_functions(**functions: Any) -> None:
    """Raises `FitError` for what is neither a function nor None."""
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise FitError(f"{name} is {shown(value, 100, repr)}, but must be a function.")


def _check_numbers(whole: Mapping[str, tuple[Any, int]], discounts: Mapping[str, Any]) -> None:
    """Raises `FitError` for numbers that cannot be.

    Args:
        whole: Name -> whole number, and the least that it may be.
        discounts: Name -> number in [0, 1].
    """
    for name, (value, least) in whole.items():
        if not isinstance(value, numbers.Integral) or value < least:
            raise FitError(
                f"{name} is {shown(value, 100, repr)}, but must be a whole number, at least "
                f"{least}."
            )
    for name, value in discounts.items():
        if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
            raise FitError(f"{name} is {shown(value, 100, repr)}, but must lie in [0, 1].")


def _checked(
    trajectories: Sequence[Trajectory], vocab_size: int, stop_token: int
) -> list[Trajectory]:
    """The data, if it can be learned from with this vocabulary and stop token."""
    if not len(trajectories):
        raise TrajectoryError(
            "no trajectories to learn from. Collect some (`rollout`) or read some."
        )
    validate_all(trajectories)
    for each in trajectories:
        if each.episode is not None:
            raise TrajectoryError(f"{each.name} is a window; give whole episodes, fit cuts them.")
    check_tokens(trajectories, vocab_size)
    if not 0 <= stop_token < vocab_size:
        raise FitError(f"stop_token is {stop_token}, but tokens go from 0 to {vocab_size - 1}.")
    ends = [each.tokens[utterance_bounds(each.is_action)[1]] for each in trajectories]
    if not any((of_one == stop_token).any() for of_one in ends):
        raise TrajectoryError(
            f"stop_token is {stop_token}, but no action in the data ends with it (the first ends "
            f"with {ends[0][0]}). Give the token that ends the agent's actions, or put one there."
        )
    for each, of_one in zip(trajectories, ends, strict=True):
        inside = int((each.tokens[each.is_action] == stop_token).sum())
        if inside > (of_one == stop_token).sum():
            raise TrajectoryError(
                f"{each.name}: the stop token {stop_token} stands in the middle of an action, "
                "which a policy would end there. Put an observation behind it, or use another stop "
                "token."
            )
    return list(trajectories)


def _check_rewards(trajectories: Sequence[Trajectory], method: Method) -> None:
    """Raises `TrajectoryError` for rewards that nothing can be learned from."""
    most = max(trajectories, key=lambda each: float(np.abs(each.rewards).max()))
    largest = float(np.abs(most.rewards).max())
    if largest > LARGEST_REWARD:
        raise TrajectoryError(
            f"{most.name}: a reward is {largest:g} in size, but may be at most {LARGEST_REWARD:g}. "
            "Give the rewards in another unit."
        )
    if largest == 0 and method.learns_values:
        raise TrajectoryError(
            f"all rewards of {len(trajectories):,} episodes are 0, so {method.name} has no values "
            "to learn. Give rewards, or use method 'bc'."
        )


def _check_room(model: ModelConfig, max_utterance: int, trajectories: Sequence[Trajectory]) -> None:
    """Raises `FitError` if the policy could not read an observation and answer it."""
    positions = model.decoder.max_positions
    first = max(int(utterance_bounds(each.is_action)[0][0]) for each in trajectories)
    if first + max_utterance > positions:
        raise FitError(
            f"max_positions is {positions}, which has no room for an action of max_utterance "
            f"{max_utterance} tokens behind an observation of {first}. Raise it to "
            f"{first + max_utterance} or more."
        )


def _edges(trajectory: Trajectory) -> np.ndarray:
    return np.stack(utterance_bounds(trajectory.is_action), axis=1)


def _scaled(trajectory: Trajectory, scale: float) -> Trajectory:
    rewards: Float[np.ndarray, " time"] = trajectory.rewards * np.float32(scale)
    return dataclasses.replace(trajectory, rewards=rewards)


def _policy(description: PolicyDescription, params: Params, method: Method) -> Policy:
    """A policy in the middle of a training: without values as long as none are learned."""
    model, params = merge_adapters(description.model, params)
    decoding = DecodingConfig(**description.decoding)
    return Policy(
        model,
        params,
        decoding if learned_values(params) else decoding.without_values,
        description.stop_token,
        description.allowed_mask,
        description.max_utterance,
        steer=method.steer,
        reward_scale=description.reward_scale,
        baseline=description.baseline,
    )


def _score(result: Any) -> float:
    """The number that a judge gave; raises `FitError` for what is none."""
    if isinstance(result, Evaluation):
        return result.mean_return
    try:
        score = float(result)
    except (TypeError, ValueError):
        score = math.nan
    if math.isnan(score):
        raise FitError(
            f"validate returned {shown(result, 100, repr)}, but must return an `Evaluation` or a "
            "number. What was trained before this is kept where `folder` is given."
        )
    return score


@contextlib.contextmanager
def _folder(folder: str | os.PathLike[str] | None) -> Iterator[Path]:
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="ilql-") as temporary:
        yield Path(temporary)
