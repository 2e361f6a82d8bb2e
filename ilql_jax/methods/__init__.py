"""The methods, one file each; everything else reads the table `METHODS`.

| method | learns |
| --- | --- |
| `bc` | the policy, by cloning all dialogues |
| `fbc` | the same, on the dialogues of highest return |
| `mc` | Q by regression on Monte-Carlo returns, beside the policy |
| `ilql` | Q by bootstrapping from V, V as an upper expectile of Q, beside the policy |
| `rwft` | the policy, by cloning dialogues weighted by their return |
| `qsft` | Q as token probabilities of a second language model, beside the policy |
| `dpo` | the policy, from pairs of utterances of which one is better |

`method.py` defines `Method`; `loss_terms.py` has the pieces that several losses are made of.
"""

from collections.abc import Collection
from pathlib import Path

from ilql_jax.errors import shown
from ilql_jax.methods import bc, dpo, fbc, ilql, mc, qsft, rwft
from ilql_jax.methods.guard import guarded
from ilql_jax.methods.method import (
    DialogueConfig,
    Method,
    MethodConfig,
    MethodError,
    Metrics,
    TrainOverrides,
    read_method,
)

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD for module in (bc, fbc, rwft, mc, ilql, qsft, dpo)
}


def load_method(path: str | Path, taken: Collection[str] = ()) -> Method:
    """Reads a method of one's own (see `read_method`); names in `METHODS` are taken too.

    What its functions raise later is told as a `MethodError` with file and line.
    """
    return guarded(read_method(path, (*METHODS, *taken)))


def method_named(name: str | Path) -> Method:
    """The method of a name in `METHODS`, or of a .py file that defines METHOD (`load_method`).

    Raises:
        MethodError: There is none, or the file cannot be used.
    """
    if str(name).endswith(".py"):
        return load_method(name)
    if name not in METHODS:
        raise MethodError(
            f"there is no method {shown(name, 100)!r}; there are {', '.join(METHODS)}, and those "
            "of a .py file that defines METHOD."
        )
    return METHODS[str(name)]


__all__ = [
    "METHODS",
    "DialogueConfig",
    "Method",
    "MethodConfig",
    "MethodError",
    "Metrics",
    "TrainOverrides",
    "load_method",
    "method_named",
]
