"""Control flow that stays cheap under vmap."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool


_T = TypeVar("_T")


def is_traced(tree: Any) -> bool:
    """Whether any leaf is a tracer, so that its value is not known now."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def cond_any(due: Bool[Array, ""], yes: Callable[[Any], _T], no: Callable[[Any], _T], operands: Any) -> _T:
    """`lax.cond` for dear work that is seldom due.

    Under vmap a `lax.cond` whose predicate differs from lane to lane runs both branches at every
    step. This one asks first whether any lane is due, does the work for all lanes in one branch, and
    selects.
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
    """`lax.cond(due, change, identity, operand)`, through which only those leaves pass that `change` changes.

    The others come back as the same objects. XLA copies what passes through a conditional, and compiles the
    copies; callers ask by `is` what was changed.
    """
    leaves, tree = jax.tree.flatten(operand)
    changed: list[bool] = []

    def find_changed(leaves: list[Array]) -> list[Array]:
        found = jax.tree.leaves(change(jax.tree.unflatten(tree, leaves)))
        changed[:] = [new is not old for new, old in zip(found, leaves, strict=True)]
        return found

    jax.eval_shape(find_changed, leaves)
    which = [i for i, new in enumerate(changed) if new]

    def yes(leaves: list[Array]) -> list[Array]:
        found = jax.tree.leaves(change(jax.tree.unflatten(tree, leaves)))
        return [found[i] for i in which]

    def no(leaves: list[Array]) -> list[Array]:
        return [leaves[i] for i in which]

    if which:
        for i, new in zip(which, jax.lax.cond(due, yes, no, leaves), strict=True):
            leaves[i] = new
    return jax.tree.unflatten(tree, leaves)


@jax.custom_jvp
def root(x: Any) -> Array:
    """The square root, whose derivative at zero is zero, not infinite.

    For norms of what may vanish (a step, a velocity at rest, all of the padding): there an infinite slope
    times a slope of zero would make NaN of the whole gradient.
    """
    x = jnp.asarray(x)
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    y = root(primals[0])
    return y, jnp.where(y == 0, 0, tangents[0] / jnp.where(y == 0, 1, 2 * y))
