"""Which devices a run uses, and the cores of a CPU as devices.

One device of a CPU runs as many programs at a time as there are cores, from as many threads, and all of them
use what was compiled once. So the cores need not be devices of JAX, and nothing has to be set before JAX
starts; where they are (`use_cores`), each of them has compiled code of its own.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax

from alchemi_jax.errors import description
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.transforms import count_numbers


#: Of so many atoms for each core several cores are faster than one, and of so many steps of an atom. Threads
#: of Python take turns, so that each core needs enough to do between two turns; to begin takes 20 ms.
_ATOMS, _ATOM_STEPS = 2000, 200_000
#: So much more a network has to do for each atom at least, and one of many parameters for so many of them.
_NETWORK, _PARAMETERS = 10, 100


def count_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_cores(n: int | None = None) -> int:
    """Make JAX see the cores of the CPU as `n` devices, by default all of them; returns their number.

    It is for programs of your own that shard over devices. `devices=` of `run`, `relax_all`, `Sampler`, ...
    uses the cores without it; `Trainer.run` needs it.

    Raises:
        ValueError: if `n` is not a positive int.
        RuntimeError: if JAX has already started with another number of devices; call it before the first
            array.
    """
    count = count_cores() if n is None else n
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"use_cores takes a number of cores, not {n!r}.")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        there = len(jax.local_devices(backend="cpu"))
        if there == count:
            return count
        raise RuntimeError(
            f"use_cores({count}) comes too late: JAX has started with {there} device{'s' * (there > 1)} of "
            "the CPU. Call it before the first array is made; or give devices= to run, which uses all cores "
            "without it."
        ) from None
    return count


def as_devices(asked: Any, who: str) -> tuple[Any, ...] | None:
    """The devices of a run, one after another; None: the one that JAX uses anyway.

    Args:
        asked: None; "all"; a number of them; or a list of devices of JAX, in which one may be several times:
            then it runs so many programs at a time.
        who: the method, for messages.

    Raises:
        ValueError, TypeError: saying what there is.
    """
    if asked is None:
        return None
    if isinstance(asked, Sequence) and not isinstance(asked, str):
        return _given(tuple(asked), who)
    there = _all_devices()
    if asked == "all" and isinstance(asked, str):
        return _unless_default(there)
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise ValueError(f'{who}: devices is "all", a number of devices, or a list of them, not {asked!r}.')
    if asked > len(there):
        kind = "cores" if there[0].platform == "cpu" else f"devices ({there[0].platform})"
        raise ValueError(f"{who}: devices is {asked}, but there are {len(there)} {kind}.")
    return _unless_default(there[:asked])


def cores_that_pay(model: AbstractModel, atoms: int, n_steps: int | None = None) -> int:
    """How many cores are faster than one for systems of so many atoms together.

    Args:
        model: what does not ask for a list of pairs alone is taken for a network.
        n_steps: of each; None: many.
    """
    needs, each = model.requirements, 1
    if needs.cutoff is None or needs.edges:
        each = max(_NETWORK, count_numbers(model) // _PARAMETERS)
    work = atoms * each
    found = work // _ATOMS
    return max(found if n_steps is None else min(found, work * n_steps // _ATOM_STEPS), 1)


def as_many_as_pay(
    asked: Any,
    devices: tuple[Any, ...] | None,
    model: AbstractModel,
    atoms: int | None,
    n_steps: Any = None,
) -> tuple[Any, ...] | None:
    """The devices that a run uses of those of `as_devices`: where all cores were asked for, as many as have
    enough to do. `atoms`: of all systems; None if that is not known."""
    cores = devices is not None and asked == "all" and devices[0].platform == "cpu"
    if devices is None or not cores or atoms is None:
        return devices
    most = None if n_steps is None else int(n_steps)
    return _unless_default(devices[: cores_that_pay(model, atoms, most)])


def _given(devices: tuple[Any, ...], who: str) -> tuple[Any, ...] | None:
    for device in devices:
        if not isinstance(device, jax.Device):
            raise TypeError(f"{who}: devices has {description(device)} in it, not a device of JAX.")
    if not devices:
        raise ValueError(f"{who}: devices is an empty list.")
    return _unless_default(devices)


def _all_devices() -> tuple[Any, ...]:
    found = tuple(jax.local_devices())
    if len(found) == 1 and found[0].platform == "cpu":
        return found * count_cores()
    return found


def default_device() -> Any:
    """The device that JAX uses where none is given."""
    chosen: Any = jax.config.jax_default_device  # pyright: ignore
    if chosen is None:
        return jax.local_devices()[0]
    return jax.local_devices(backend=chosen)[0] if isinstance(chosen, str) else chosen


def _unless_default(devices: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return None if devices == (default_device(),) else devices


__all__ = [
    "as_devices",
    "as_many_as_pay",
    "cores_that_pay",
    "count_cores",
    "default_device",
    "use_cores",
]
