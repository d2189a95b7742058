"""The parts of `python -m benchmarks.gpu`: each yields rows of figures, in a process of its own.

A row is a dict with at least `what`. `size` divides the numbers of systems and steps, so that a CPU can run
all of it.
"""

import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from alchemi_jax import Batch
from alchemi_jax.dynamics import (
    NVE,
    initialize_velocities,
)
from alchemi_jax.dynamics.hooks import LoggingHook
from alchemi_jax.models import EMT, StillingerWeber, Tersoff, chgnet_weights
from benchmarks import hooks, structures, timing, workloads
from benchmarks.gpu_laws import DTYPES, LAWS, Row, laws


def memory() -> float | None:
    """The most MB that the device has held in this process."""
    stats = jax.devices()[0].memory_stats()
    return None if stats is None else stats["peak_bytes_in_use"] / 1e6


# -- speed ---------------------------------------------------------------------------------------------


def _timed(name: str, dtypes: tuple[str, ...] = DTYPES, **sizes: int) -> Iterator[Row]:
    for dtype in dtypes:
        jax.config.update("jax_enable_x64", dtype == "float64")
        row = workloads.WORKLOADS[name](dtype, 5, **sizes)
        row["compile_s"] = row["first_s"] - row["s"]
        yield {"what": name, **row, "peak_MB": memory()}


def _small(size: int, n: int, least: int = 2) -> int:
    return max(n // size, least)


def w1(size: int) -> Iterator[Row]:
    yield from _timed("W1", systems=_small(size, 256))


def w2(size: int) -> Iterator[Row]:
    yield from _timed("W2", systems=_small(size, 32), steps=_small(size, 200))


def w3(size: int) -> Iterator[Row]:
    yield from _timed("W3", cells=_small(size, 10, 4), steps=_small(size, 200))


def w4(size: int) -> Iterator[Row]:
    yield from _timed("W4", systems=_small(size, 32), steps=_small(size, 200, 50))


def w5(size: int) -> Iterator[Row]:
    yield from _timed("W5", ("float32",), systems=_small(size, 512, 16), flying=_small(size, 64, 4))


def _with_chgnet(name: str, dtypes: tuple[str, ...], size: int) -> Iterator[Row]:
    if not chgnet_weights.found():
        yield {"what": f"{name}, left out", "note": "no weights of CHGNet here: --bring takes them along"}
        return
    yield from _timed(name, dtypes, systems=_small(size, 32, 1))


def w6(size: int) -> Iterator[Row]:
    """CHGNet alone, and what a loop adds to it."""
    yield from _with_chgnet("W6", DTYPES, size)


def w7(size: int) -> Iterator[Row]:
    """A relaxation with CHGNet."""
    yield from _with_chgnet("W7", ("float32",), size)


def large(size: int) -> Iterator[Row]:
    """W1 and W2 with so many systems that the device is full."""
    for times in (8, 64):
        yield from _timed("W1", ("float32",), systems=_small(size, 256 * times))
        yield from _timed("W2", ("float32",), systems=_small(size, 32 * times), steps=_small(size, 200))


def w8(size: int) -> Iterator[Row]:
    """NVE of silicon and copper with potentials of many bodies."""
    cells = 8 if size == 1 else 2
    made = (
        ("Stillinger-Weber", StillingerWeber(), structures.silicon(cells)),
        ("Tersoff", Tersoff.group_iv(), structures.silicon(cells)),
        ("EMT", EMT(), structures.copper(cells)),
    )
    for (name, model, atoms), dtype in itertools.product(made, DTYPES):
        jax.config.update("jax_enable_x64", dtype == "float64")
        batch = initialize_velocities(Batch.from_ase([atoms], dtype=dtype), 600.0, jax.random.key(0))
        engine = NVE(model=model, dt=1.0, n_steps=_small(size, 200))
        run: Callable[[], Any] = lambda: jax.block_until_ready(engine.run(batch).positions)  # noqa: B023, E731
        (figures,) = timing.timed(run, repeats=3)
        rate = _small(size, 200) * len(atoms) / figures["s"]
        yield {
            "what": f"W8, {name}",
            "dtype": dtype,
            **figures,
            "atom_steps_per_s": rate,
            "peak_MB": memory(),
        }


def cost_of_hooks(size: int) -> Iterator[Row]:
    """Time of a step of W2 with hooks over one without."""
    jax.config.update("jax_enable_x64", False)
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds, over in hooks.measured(Path(folder), _small(size, 32), _small(size, 200), 5):
            yield {"what": name, "ms_per_step": 1e3 * seconds, "over_none": over}


# -- where the time goes -------------------------------------------------------------------------------


def device_events(folder: Path) -> list[tuple[float, float, str]]:
    """Begin, end (ns) and name of what ran on the device, from a trace of JAX's profiler."""
    (path,) = folder.rglob("*.xplane.pb")
    out = []
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        if plane.name.startswith("/device:"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    out += [(e.start_ns, e.start_ns + e.duration_ns, e.name) for e in line.events]
    return sorted(out)


def busy(events: list[tuple[float, float, str]]) -> float:
    """Nanoseconds in which at least one event ran."""
    total, last = 0.0, float("-inf")
    for begin, end, _ in events:
        total += max(end - max(begin, last), 0)
        last = max(last, end)
    return total


#: Nanoseconds: launches of kernels follow one another within microseconds, so that a longer pause is a wait
#: for the host.
PAUSE = 100_000.0


def pauses(events: list[tuple[float, float, str]]) -> list[float]:
    """Lengths, ns, of the times in which the device waited for the host: between segments, or for a hook."""
    found, last = [], events[0][1]
    for begin, end, _ in events:
        found += [begin - last] if begin - last > PAUSE else []
        last = max(last, end)
    return found


def profile(size: int) -> Iterator[Row]:
    """How busy the device is in a run of W2, alone and with a log each ten steps; the dearest kernels."""
    jax.config.update("jax_enable_x64", False)
    steps = _small(size, 200)
    batch = workloads.moving(structures.crystals(_small(size, 32)), "float32")
    with tempfile.TemporaryDirectory() as folder:
        log = LoggingHook(log_path=Path(folder) / "log.csv", frequency=10, mode="w")
        for name, attached in (("W2", []), ("W2, log each 10 steps", [log])):
            engine = NVE(model=workloads.argon(), dt=4.0, n_steps=steps, hooks=attached)
            seconds = []
            for _ in range(3):
                begun = time.perf_counter()
                jax.block_until_ready(engine.run(batch).positions)
                seconds.append(time.perf_counter() - begun)
            where = Path(folder) / name.replace(" ", "")
            with jax.profiler.trace(str(where)):
                jax.block_until_ready(engine.run(batch).positions)
            events = device_events(where)
            if not events:
                yield {"what": name, "s": seconds[-1], "note": "this device leaves no events in a trace"}
                continue
            span = events[-1][1] - events[0][0]
            sums: dict[str, list[float]] = {}
            for begin, end, kernel in events:
                sums.setdefault(kernel, []).append(end - begin)
            dearest = sorted(sums.items(), key=lambda item: -sum(item[1]))[:12]
            yield {
                "what": name,
                "s": statistics.median(seconds),
                "events_per_step": len(events) / steps,
                "busy": busy(events) / span,
                "busy_us_per_step": busy(events) / 1e3 / steps,
                "host_idle": sum(pauses(events)) / span,
                "pauses": len(pauses(events)),
                "longest_pause_us": max(pauses(events), default=0.0) / 1e3,
                "dearest": [[k, len(v), sum(v) / 1e3] for k, v in dearest],
            }


PARTS: dict[str, Callable[[int], Iterator[Row]]] = {
    **{f"laws{k}": functools.partial(laws, which=k) for k in range(len(LAWS))},
    "W1": w1,
    "W2": w2,
    "profile": profile,
    "W6": w6,
    "W5": w5,
    "hooks": cost_of_hooks,
    "W8": w8,
    "W4": w4,
    "W3": w3,
    "W7": w7,
    "large": large,
}
"""Most important first."""
