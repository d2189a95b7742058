"""A run that does not fit the device ends with one sentence: what it needs, what there is, and what fits."""

import contextlib
import re
from collections.abc import Callable, Iterator

import jax
import numpy as np

from alchemi_jax.dynamics.footprint import Capacity, footprint, max_batch, readable
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.errors import OutOfMemory, name_of
from alchemi_jax.neighbors.limits import memory
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch


#: The part of the memory that a run can count on. Fragments and other arrays take the rest.
_USABLE = 0.9
#: Systems of a batch by which it is judged how many of them fit.
_SAMPLE = 16


@contextlib.contextmanager
def explain_out_of_memory(engine: Engine, batch: Callable[[], Batch]) -> Iterator[None]:
    """Around compiled calls: an error of XLA that memory is exhausted becomes `OutOfMemory`.

    Args:
        batch: returns the batch that is treated; it is called after an error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        raise _explain(engine, batch(), str(e)) from e


@contextlib.contextmanager
def explain_sweep(engine: Engine, batch: Batch, lanes: int) -> Iterator[None]:
    """The same around a sweep in which so many combinations run together."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        text = (
            f"sweep with {lanes} combinations at once does not fit the device: there are {readable(memory())}"
        )
        try:
            one = footprint(engine, batch).total
        except Exception as second:
            error = OutOfMemory(f"{text}. Give a smaller `together`.")
            error.add_note(f"what would fit could not be found: {type(second).__name__}: {second}")
            raise error from e
        most = int(_USABLE * memory() // one)
        advice = f"give together={min(most, lanes - 1)}" if min(most, lanes - 1) else "take fewer systems"
        raise OutOfMemory(f"{text}, and one needs about {readable(one)}: {advice}.") from e


def _explain(engine: Engine, batch: Batch, message: str) -> OutOfMemory:
    host = batch.to_host()
    asked = f"{name_of(engine)} with {len(host)} systems and {int(host.atoms_per_system.sum())} atoms"
    there, limit = f"there are {readable(memory())}", _USABLE * memory()
    one = re.search(r"allocat\w*\s+([\d.]+)\s?(\w+)", message)
    first = "" if one is None else f" (XLA asked for {_size(one[1], one[2])} at once)"
    try:
        found = _find_capacity(engine, batch, host, limit)
    except Exception as e:
        # The analysis compiles the loop, which may fail for the same reason.
        text = f"{asked} does not fit the device{first}: {there}. Take fewer systems at a time."
        error = OutOfMemory(text)
        error.add_note(f"what would fit could not be found: {type(e).__name__}: {e}")
        return error
    if found is None:
        row = int(np.argmax(host.atoms_per_system))
        text = f"not even {batch.name_of(row)}, the largest system, fits alone"
        return OutOfMemory(f"{asked} does not fit the device{first}: {there}, and {text}.")
    needed = found.footprint.total * len(host) / found.systems
    if found.systems >= len(host):
        text = f"it needs about {readable(needed)}{first}, and {there}: something else is using the memory"
        return OutOfMemory(f"{asked} does not fit the device: {text}.", found)
    return OutOfMemory(
        f"{asked} needs about {readable(needed)}{first}, and {there}: {found.systems} systems with "
        f"{found.atoms} atoms fit at once. run(sampler=Sampler(structures, max_systems={found.systems}, "
        f"max_atoms={found.atoms})) takes that many at a time.",
        found,
    )


def _find_capacity(engine: Engine, batch: Batch, host: HostBatch, budget: float) -> Capacity | None:
    """How many systems like those of a batch fit; None if not even the largest does."""
    order = np.argsort(host.atoms_per_system, kind="stable")
    count = min(_SAMPLE, max(len(host) // 4, 1))
    for n in dict.fromkeys((count, 1)):
        # Of all sizes, the largest among them.
        rows = order[::-1][np.linspace(0, len(host) - 1, n).astype(int)]
        some = host.take(rows)
        sample = Batch.from_host(some, int(some.atoms_per_system.sum()), n, largest=batch.largest)
        try:
            return max_batch(engine, sample, budget)
        except ValueError as e:
            if "the budget is" not in str(e):
                raise
    return None


def _size(number: str, unit: str) -> str:
    """A size as XLA writes it, in bytes or another unit."""
    return readable(float(number)) if unit == "bytes" else f"{number} {unit}"


__all__ = ["explain_out_of_memory", "explain_sweep"]
