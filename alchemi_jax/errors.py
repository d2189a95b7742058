"""Errors for mistakes in the code of a user (a hook, a model, an algorithm) that runs inside compiled code.

A message names the class and the field, what was expected and found, what to do, and the line in the user's
file. Mistakes are found while JAX traces, from shapes and dtypes, so that a run without mistakes costs
nothing.
"""

import contextlib
import dataclasses
import inspect
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np


Kind = Literal["hook", "model", "algorithm"]


class UserCodeError(TypeError):
    """A mistake in the code of a hook, model or function of yours. The message names the object, the file and
    the line."""


class OutOfMemory(MemoryError):
    """A run does not fit into the memory of the device. The message says what fits.

    Attributes:
        capacity: the batch that fits, a `Capacity` as from `max_batch`; None if it could not be found.
        state: the state reached, if any.
    """

    def __init__(self, text: str, capacity: Any = None):
        super().__init__(text)
        self.capacity = capacity


def name_of(thing: Any) -> str:
    """The name of a hook, a model or an engine in errors."""
    return type(thing).__name__


# -- errors while tracing -----------------------------------------------------------------------------

#: The first one that fits is reported: some are subclasses of others.
_TRACING_ERRORS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        jax.errors.TracerBoolConversionError,
        "asks whether a traced array is true (if, while, and, bool)",
        "choose with jnp.where",
    ),
    (jax.errors.TracerArrayConversionError, "gives a traced array to numpy", "use jax.numpy"),
    (
        jax.errors.TracerIntegerConversionError,
        "counts or indexes with a traced array (range, a list)",
        "use jnp.take or jax.lax.fori_loop",
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "picks entries by a traced mask, x[mask]",
        "keep the shape with jnp.where(mask, x, 0)",
    ),
    (
        jax.errors.ConcretizationTypeError,
        "asks for the number in a traced array (float, int, .item)",
        "stay with arrays",
    ),
    (
        jax.errors.UnexpectedTracerError,
        "uses a traced array that was kept from an earlier call (self.x, a global)",
        "return what is to be kept",
    ),
)
_ELSE: dict[Kind, str] = {
    "hook": ", or look from a host hook",
    "model": "",
    "algorithm": ", or look from a host hook",
}
_FROZEN: dict[Kind, str] = {
    "hook": "return ctx.with_batch({field}=...), and ctx.with_memory(...) for what a hook remembers",
    "model": "return what changes, from batch.replace({field}=...) if need be",
    "algorithm": "return batch.replace({field}=...), and a new state",
}


@contextlib.contextmanager
def user_errors(who: str, kind: Kind) -> Iterator[None]:
    """Around a call of traced code of a user: rewrites errors of JAX, and adds the name to other exceptions.

    Raises:
        UserCodeError: in place of the errors that JAX raises when code needs the values of a tracer.
    """
    try:
        yield
    except UserCodeError:
        raise
    except dataclasses.FrozenInstanceError as e:
        field = (re.findall(r"'(\w+)'", str(e)) or ["..."])[0]
        advice = _FROZEN[kind].format(field=field)
        raise UserCodeError(f"{who} assigns to the frozen field {field!r}{_line(e)}: {advice}.") from None
    except Exception as e:
        for error, did, advice in _TRACING_ERRORS:
            if isinstance(e, error):
                raise UserCodeError(
                    f"{who} {did}{_line(e)}, but compiled code has no values yet: {advice}{_ELSE[kind]}."
                ) from None
        e.add_note(f"raised in {kind} {who}")
        raise


#: Packages with frames that are not the user's.
_LIBRARIES = {"alchemi_jax", "jax", "jaxlib", "equinox", "numpy", "flax", "optax", "plum", "jaxtyping"}
_LIBRARIES |= {"beartype", "contextlib", "functools"}


def _line(error: BaseException) -> str:
    """ " at file:line": the innermost frame in the code of the user, or in this package if there is none."""
    user, package = "", ""
    tb = error.__traceback__
    while tb is not None:
        root = str(tb.tb_frame.f_globals.get("__name__", "")).split(".")[0]
        at = f" at {_short(tb.tb_frame.f_code.co_filename)}:{tb.tb_lineno}"
        if root not in _LIBRARIES:
            user = at
        elif root == "alchemi_jax":
            package = at
        tb = tb.tb_next
    return user or package


def _short(path: str) -> str:
    inside = os.path.relpath(path) if os.path.isabs(path) else path
    return path if inside.startswith("..") else inside


def location(function: Any) -> str:
    """ " (file:line)" of the first line of a function; an empty string if it is not known."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return "" if code is None else f" ({_short(code.co_filename)}:{code.co_firstlineno})"


# -- checks of results -----------------------------------------------------------------------------


def description(x: Any) -> str:
    """How messages describe a value: "float32[16, 3]", "None", "a dict"."""
    if x is None:
        return "None"
    if _has_dtype(x):
        return f"{x.dtype}{list(x.shape)}"
    if isinstance(x, bool | int | float | complex):
        return f"the number {x}"
    return f"{'an' if name_of(x)[0] in 'aeiouAEIOU' else 'a'} {name_of(x)}"


def _has_dtype(x: Any) -> bool:
    return hasattr(x, "dtype") and hasattr(x, "shape")


def is_array(x: Any) -> bool:
    """Whether JAX accepts the value as an array of numbers."""
    if isinstance(x, bool | int | float | complex | jax.Array | np.generic):
        return True
    return isinstance(x, np.ndarray) and x.dtype.kind in "biufcV"


def check_same_structure(who: str, what: str, new: Any, old: Any, function: Callable | None = None) -> Any:
    """`new`, after a check that its leaves have the shapes and dtypes of those of `old`.

    Integers may have any width, and weakly typed numbers any dtype; both are cast.

    Args:
        who: the class that returned it. what: its name in the message, "batch" or "memory".
        function: the function that returned it; the message gives its file and line.

    Raises:
        UserCodeError: for another structure, shape or dtype, naming the first leaf.
    """
    if new is old:
        return old
    if type(new) is not type(old) and not (_has_dtype(old) and is_array(new)):
        raise UserCodeError(
            f"{who} returned {what} as {description(new)}; it must stay {description(old)}{_at(function)}."
        )
    news, olds = _leaves(new), _leaves(old)
    out = []
    for path, b in olds.items():
        if path not in news:
            raise UserCodeError(
                f"{who} returned {what} without {what}{path}, which it had: "
                f"its structure must stay{_at(function)}."
            )
        a = news[path]
        if a is not b:
            advice = _find_mismatch(a, b)
            if advice:
                raise UserCodeError(
                    f"{who} returned {what}{path} as {description(a)}; it must stay {description(b)}: "
                    f"{advice}{_at(function)}."
                )
            if b is not None:
                a = jnp.asarray(a).astype(_known(b).dtype)
        out.append(a)
    extra = next((path for path in news if path not in olds), None)
    if extra is not None:
        raise UserCodeError(
            f"{who} returned {what} with {what}{extra}, which it did not have: "
            f"its structure must stay{_at(function)}."
        )
    old_tree, new_tree = jax.tree.structure(old), jax.tree.structure(new)
    if old_tree != new_tree:
        raise UserCodeError(
            f"{who} changed the structure of its {what}, a {name_of(old)}: "
            f"the same classes and static fields must come back{_at(function)}."
        )
    return jax.tree.unflatten(old_tree, [a for a in out if a is not None])


def _at(function: Callable | None) -> str:
    return "" if function is None else location(function)


def _leaves(tree: Any) -> dict[str, Any]:
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}


def _known(x: Any) -> Any:
    return x if isinstance(x, jax.Array | jax.ShapeDtypeStruct) else jnp.asarray(x)


def _find_mismatch(a: Any, b: Any) -> str:
    """What to do to make `a` like `b`; an empty string if it is accepted."""
    if (a is None) != (b is None) or (a is not None and not is_array(a)):
        return "give an array"
    if a is None:
        return ""
    a, b = jnp.asarray(a), _known(b)
    if a.shape != b.shape:
        return "a shape never changes, padding and all"
    if a.dtype == b.dtype:
        return ""
    real = [jnp.issubdtype(x.dtype, jnp.inexact) for x in (a, b)]
    integer = [jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool for x in (a, b)]
    if all(integer) or (a.weak_type and (real[1] if integer[0] else all(real))):
        return ""
    return f'end with .astype("{b.dtype}")'


# -- public methods --------------------------------------------------------------------------------


class public_call:
    """A context for public methods.

    A `UserCodeError` loses the frames of loops and transforms in between; with `JAX_TRACEBACK_FILTERING=off`
    they are kept. Settings with which users look for mistakes in code of their own do not apply inside:
    `jax_debug_nans`, since here a NaN also says that something is not there (the stress of a molecule), and
    `jax_transfer_guard`, since the driver has to read and write some numbers.

    A class, not a generator, since that would add a frame and warnings would not point at the caller.
    """

    __slots__ = ("_settings",)

    def __enter__(self) -> None:
        config: Any = jax.config
        self._settings: list[Any] = []
        if config.jax_debug_nans:
            self._settings.append(jax.debug_nans(False))
        if any(str(getattr(config, name)).startswith("disallow") for name in _GUARDS):
            self._settings.append(jax.transfer_guard("allow"))
        for setting in self._settings:
            setting.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, tb: Any) -> None:
        for setting in reversed(self._settings):
            setting.__exit__(None, None, None)
        if isinstance(error, UserCodeError) and jax.config.jax_traceback_filtering != "off":  # pyright: ignore
            # Remove the note by JAX that frames were left out.
            notes = [n for n in getattr(error, "__notes__", ()) if "internal frames" not in n]
            error.__notes__ = notes
            raise error.with_traceback(None) from None


_GUARDS = ("jax_transfer_guard", "jax_transfer_guard_host_to_device", "jax_transfer_guard_device_to_host")
_GUARDS += ("jax_transfer_guard_device_to_device",)


__all__ = [
    "Kind",
    "OutOfMemory",
    "UserCodeError",
    "check_same_structure",
    "description",
    "is_array",
    "location",
    "name_of",
    "public_call",
    "user_errors",
]
