"""`guarded`: a method of one's own whose functions are watched wherever they are called.

A slip in them is told with the method's file and line instead of the traceback through ours.
`rehearse` in `ilql_jax/rehearsal.py` calls them once before any work begins.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ilql_jax.errors import UserError, place_of_function, shown
from ilql_jax.losses import steer_logits
from ilql_jax.methods.method import Method, MethodError
from ilql_jax.models import ModelConfig
from ilql_jax.trajectory import Trajectory

# Says what is wrong with a result, as the end of a sentence; None where nothing is.
Check = Callable[[Any], str | None]


def guarded(method: Method) -> Method:
    """A copy whose functions raise `MethodError` for what they raise, and for results of no use."""
    checks: dict[str, Check] = {
        "loss": _loss_problem,
        "select": _selection_problem,
        "network": _network_problem,
        "values_by_token": lambda value: None,
        "steer": lambda value: None,
        "going_on": functools.partial(_config_problem, type(method.config)),
    }
    functions = {
        name: _watched(function, f"{method.name}: {name}", problem_of)
        for name, problem_of in checks.items()
        # The default is no slip of theirs, and is told from a rule of their own by what it is.
        if (function := getattr(method, name)) not in (None, steer_logits)
    }
    return dataclasses.replace(method, **functions)


def _watched(function: Callable[..., Any], name: str, problem_of: Check) -> Callable[..., Any]:
    @functools.wraps(function, updated=())
    def watched(*arguments: Any, **named: Any) -> Any:
        try:
            value = function(*arguments, **named)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            # JAX explains an error over many lines; the first one says what it is.
            said = shown(str(error).strip().partition("\n")[0], 300)
            raised = f"{name} raised {type(error).__name__}: {said}"
            raise MethodError(f"{raised}{place_of_function(function, error)}") from error
        if (problem := problem_of(value)) is not None:
            raise MethodError(f"{name} {problem}{place_of_function(function)}")
        return value

    return watched


def _loss_problem(value: Any) -> str | None:
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict)):
        return f"gives {shown(value)}, but must give a pair: the loss, and a dict of metrics."
    loss, metrics = value
    if not (_is_scalar(loss) and jnp.issubdtype(jnp.result_type(loss), jnp.floating)):
        return f"gives a loss {_described(loss)}, but must give a scalar of floating point."
    for name, metric in metrics.items():
        if not (isinstance(name, str) and _is_scalar(metric)):
            return f"gives a metric {shown(name)!r} {_described(metric)}, but must give scalars."
    return None


def _is_scalar(value: Any) -> bool:
    return (
        isinstance(value, (int, float, np.generic, np.ndarray, jax.Array))
        and jnp.shape(value) == ()
    )


def _described(value: Any) -> str:
    if isinstance(value, jax.Array):
        return f"of shape {value.shape} and type {value.dtype}"
    return f"that is {shown(value)!r}"


def _selection_problem(value: Any) -> str | None:
    if not isinstance(value, list):
        return f"gives {shown(value)}, but must give a list of trajectories."
    for index, each in enumerate(value):
        if not isinstance(each, Trajectory):
            return f"gives {shown(each)!r} at place {index}, which is no `Trajectory`."
    return None


def _config_problem(kind: type, value: Any) -> str | None:
    if not isinstance(value, kind):
        return f"gives {shown(value)}, but must give a `{kind.__name__}`."
    return None


def _network_problem(value: Any) -> str | None:
    if not isinstance(value, ModelConfig):
        return f"gives {shown(value)}, but must give a `ModelConfig`."
    return None
