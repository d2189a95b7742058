"""Control flow that stays cheap under vmap."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, Inexact, Int, Shaped


_T = TypeVar("_T")

#: Options of XLA for what runs once: it compiles in a third of the time, to slower code.
RUNS_ONCE = {"xla_backend_optimization_level": 0}


def is_traced(tree: Any) -> bool:
    """Whether any leaf is a tracer, so that its values are not known."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def is_reversed(tree: Any) -> bool:
    """Whether a leaf is traced for a derivative backwards, by `jax.grad` or `jax.vjp`; not seen through jit.

    The classes of tracers are not in the public API of JAX: with other classes the answer is no.
    """
    return any(_is_reversed(leaf) for leaf in jax.tree.leaves(tree))


def _is_reversed(x: Any) -> bool:
    while isinstance(x, Tracer):
        trace = getattr(x, "_trace", None)
        if type(x).__name__ == "LinearizeTracer" and getattr(trace, "is_vjp", False):
            return True
        x = next((getattr(x, name) for name in ("val", "primal") if hasattr(x, name)), None)
    return False


#: The identity, with derivatives forwards alone.
_forwards_only = Primitive("forwards_only")
_forwards_only.def_impl(lambda x, message: x)
_forwards_only.def_abstract_eval(lambda x, message: x)
mlir.register_lowering(_forwards_only, lambda context, x, message: [x])


def _forwards_only_jvp(primals: tuple, tangents: tuple, message: str) -> tuple[Any, Any]:
    (x,), (slope,) = primals, tangents
    unchanged = slope if isinstance(slope, ad.Zero) else _forwards_only.bind(slope, message=message)
    return _forwards_only.bind(x, message=message), unchanged


def _forwards_only_batched(values: tuple, axes: tuple, message: str) -> tuple[Any, Any]:
    return _forwards_only.bind(values[0], message=message), axes[0]


def _refuse_backwards(*_: Any, message: str) -> Any:
    raise ValueError(message)


ad.primitive_jvps[_forwards_only] = _forwards_only_jvp
ad.primitive_transposes[_forwards_only] = _refuse_backwards
batching.primitive_batchers[_forwards_only] = _forwards_only_batched


def forwards_only(tree: _T, message: str) -> _T:
    """The tree, unchanged. A derivative backwards through it raises a ValueError with the message, also where
    the tree was made under jit, vmap or a loop.

    In place of the sentence of JAX about `lax.while_loop`, which no user of ours has written.
    """

    def mark(x: Any) -> Any:
        inexact = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.inexact)
        return _forwards_only.bind(x, message=message) if inexact else x

    return jax.tree.map(mark, tree)


def cond_any(due: Bool[Array, ""], yes: Callable[[Any], _T], no: Callable[[Any], _T], operands: Any) -> _T:
    """`lax.cond` for expensive work that is rarely due.

    Under vmap, a `lax.cond` with a predicate per lane runs both branches in every step. This function asks
    whether any lane is due, then does the work for all lanes in one branch and selects lanes. It has
    derivatives in both directions, as `lax.cond` has.
    """

    any_due, own = _in_any_lane(due)

    def choose(operands: Any) -> Any:
        # What neither branch changes is the same object in both, and need not be selected.
        return jax.tree.map(lambda a, b: a if a is b else jnp.where(own, a, b), yes(operands), no(operands))

    return jax.lax.cond(any_due, choose, no, operands)


@jax.custom_batching.custom_vmap
def _in_any_lane(due: Bool[Array, ""]) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """Whether any lane is due, and whether this one is if any is. Without vmap the second is a constant, with
    which XLA drops the selection."""
    return due, jnp.ones((), bool)


@_in_any_lane.def_vmap
def _(axis_size: int, in_batched: Any, due: Bool[Array, " lanes"]) -> Any:
    return (_in_any_lane(jnp.any(due, axis=0))[0], due), (False, True)


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


def count_numbers(tree: Any) -> int:
    """How many numbers the arrays of a tree have."""
    return sum(x.size for x in jax.tree.leaves(tree) if hasattr(x, "size"))


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


__all__ = [
    "RUNS_ONCE",
    "compute_once",
    "cond_any",
    "cond_changed",
    "count_numbers",
    "forwards_only",
    "is_reversed",
    "is_traced",
    "root",
]
