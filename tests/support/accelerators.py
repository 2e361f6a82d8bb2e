"""Programs for accelerators, on a machine without one."""

from __future__ import annotations

import jax
from jax._src.mesh import AbstractDevice


def for_gpu():
    """Traces programs for GPUs (a context); those in float32 run on CPUs too."""
    device = AbstractDevice("a GPU", None, "gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def products(function, *arguments):
    """Lists the products in a function's program for GPUs: shape and dtype of factors and result.

    Returns:
        Triples of `jax.ShapeDtypeStruct`, those in loops and conditions too.
    """
    with for_gpu():
        return list(_products(jax.make_jaxpr(function)(*arguments).jaxpr))


def _products(program):
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(
                jax.ShapeDtypeStruct(each.aval.shape, each.aval.dtype)
                for each in (*equation.invars, *equation.outvars)
            )
        for inner in jax.tree.leaves(equation.params, is_leaf=_is_program):
            if _is_program(inner):
                yield from _products(getattr(inner, "jaxpr", inner))


def _is_program(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
