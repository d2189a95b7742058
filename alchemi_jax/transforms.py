"""Control flow that stays cheap under vmap."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Inexact, Int, Shaped


_T = TypeVar("_T")

#: Options of XLA for what runs once: it compiles in a third of the time, to slower code.
RUNS_ONCE = {"xla_backend_optimization_level": 0}


def is_traced(tree: Any) -> bool:
    """Whether any leaf is a tracer, so that its values are not known."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def cond_any(due: Bool[Array, ""], yes: Callable[[Any], _T], no: Callable[[Any], _T], operands: Any) -> _T:
    """`lax.cond` for expensive work that is rarely due.

    Under vmap, a `lax.cond` with a predicate per lane runs both branches in every step. This function first
    asks whether any lane is due, then does the work for all lanes in one branch and selects lanes.
    """

    @jax.custom_batching.custom_vmap
    def run(due, operands):
        return jax.lax.cond(due, yes, no, operands)

    @run.def_vmap
    def _(axis_size, in_batched, due, operands):
        due_batched, operands_batched = in_batched

        def spread(x, is_batched):
            return x if is_batched else jnp.broadcast_to(x, (axis_size, *jnp.shape(x)))

        due = spread(due, due_batched)
        operands = jax.tree.map(spread, operands, operands_batched)

        def one(due, operands):
            new, old = yes(operands), no(operands)
            return jax.tree.map(lambda a, b: jnp.where(due, a, b), new, old)

        out = cond_any(
            jnp.any(due), lambda o: jax.vmap(one)(*o), lambda o: jax.vmap(no)(o[1]), (due, operands)
        )
        return out, jax.tree.map(lambda _: True, out)

    return run(due, operands)


def cond_changed(due: Bool[Array, ""], change: Callable[[_T], _T], operand: _T) -> _T:
    """`lax.cond(due, change, identity, operand)` for the leaves that `change` changes.

    The other leaves do not pass through the conditional and are returned as the same objects: XLA copies what
    passes through, and compiles the copies. Callers find out with `is` what was changed.
    """
    leaves, tree = jax.tree.flatten(operand)
    changed: list[bool] = []

    def find_changed(leaves: list[Shaped[Array, "..."]]) -> list[Shaped[Array, "..."]]:
        found = jax.tree.leaves(change(jax.tree.unflatten(tree, leaves)))
        changed[:] = [new is not old for new, old in zip(found, leaves, strict=True)]
        return found

    jax.eval_shape(find_changed, leaves)
    indices = [i for i, new in enumerate(changed) if new]

    def yes(leaves: list[Shaped[Array, "..."]]) -> list[Shaped[Array, "..."]]:
        found = jax.tree.leaves(change(jax.tree.unflatten(tree, leaves)))
        return [found[i] for i in indices]

    def no(leaves: list[Shaped[Array, "..."]]) -> list[Shaped[Array, "..."]]:
        return [leaves[i] for i in indices]

    if indices:
        for i, new in zip(indices, jax.lax.cond(due, yes, no, leaves), strict=True):
            leaves[i] = new
    return jax.tree.unflatten(tree, leaves)


def compute_once(make: Callable[[], _T], once: Int[Array, ""]) -> _T:
    """The arrays that `make` returns, computed once, however many kernels read them.

    XLA repeats cheap arithmetic in each kernel that reads its result, and the copies may differ in their last
    bit: where an integer follows from it (`floor`), kernels then disagree on the integer. What a loop returns
    is in memory and never computed again. Not differentiable.

    Args:
        once: 1, as a number that XLA knows only when the program runs.
    """
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(make))
    return jax.lax.fori_loop(0, once, lambda _, __: make(), empty)


@jax.custom_jvp
def root(x: Any) -> Inexact[Array, "..."]:
    """The square root with derivative zero at zero, where that of `jnp.sqrt` is infinite.

    For norms that may be zero (a step, a velocity, padding): an infinite derivative times a derivative of
    zero would make all of a gradient NaN.
    """
    x = jnp.asarray(x)
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: tuple, tangents: tuple) -> tuple[Inexact[Array, "*n"], Inexact[Array, "*n"]]:
    y = root(primals[0])
    return y, jnp.where(y == 0, 0, tangents[0] / jnp.where(y == 0, 1, 2 * y))
