"""What `relax`, `md` and `run` share: structures in, systems through an engine, finished ones to a store."""

import contextlib
import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from alchemi_jax.cli.cache import CompileTime, use_cache
from alchemi_jax.cli.cluster import run_over
from alchemi_jax.cli.engines import engine_of, log_of
from alchemi_jax.cli.finished import FinishedSystems, is_done
from alchemi_jax.cli.flags import Job
from alchemi_jax.cli.folder import CHECKPOINTS
from alchemi_jax.cli.models import canonical, model_from, model_hashes
from alchemi_jax.cli.outcome import INSTEAD, KEPT, UsageError, one_line, os_reason
from alchemi_jax.cli.read import read
from alchemi_jax.cli.settings import MD, Pipeline
from alchemi_jax.cli.signals import Signals
from alchemi_jax.cli.watch import Watch
from alchemi_jax.dynamics import Sampler
from alchemi_jax.dynamics.api import draw_velocities
from alchemi_jax.dynamics.check import check_constraints, check_systems
from alchemi_jax.dynamics.devices.devices import as_devices, cores_that_pay, count_cores
from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.hooks import CheckpointHook
from alchemi_jax.dynamics.processes import is_own
from alchemi_jax.errors import OutOfMemory, name_of
from alchemi_jax.io.cut import ADVICE
from alchemi_jax.io.sinks.checksum import DamagedError
from alchemi_jax.models.elements import UnknownElementError
from alchemi_jax.models.registry import advice, choose
from alchemi_jax.shared import processes_here, world
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch


LOG = "log.csv"
#: So many structures are checked at once.
_CHECKED = 512


@dataclasses.dataclass
class Prepared:
    """A run whose input is known to be good; nothing is written yet.

    Attributes:
        settings: of the run.
        sources: file, index in it, and structure, of each system.
        engine: of all stages, without logs.
        hashes: of the files of the model.
        chosen: why the model was taken if none was given, otherwise "".
        devices: "all", a number, or None: as many as pay.
        cluster: where its structures are computed: see `connect`; None: here.
    """

    settings: Pipeline
    sources: list[tuple[Path, int, AtomicData]]
    engine: AbstractDynamics
    hashes: dict[str, str]
    chosen: str = ""
    devices: str | None = None
    cluster: str | None = None

    @property
    def data(self) -> list[AtomicData]:
        """The structures."""
        return [data for _, _, data in self.sources]

    @property
    def model_names(self) -> str:
        """The model by name, a sum with plus signs."""
        names = self.settings.model
        return names if isinstance(names, str) else " + ".join(names or ())

    @property
    def model(self) -> str:
        """A sentence on the model, without its stop."""
        why = f", since none was given and {self.chosen}" if self.chosen else ""
        return f"Model: {self.model_names}{why}"

    @property
    def input(self) -> str:
        """How many structures, and from where."""
        # A folder that was given is many files.
        n, files = len(self.sources), len({path for path, _, _ in self.sources})
        atoms = sum(map(len, self.data))
        where = f"{files} file{'s' * (files > 1)}" if self.settings.files else "the sample set"
        return f"{n} structure{'s' * (n > 1)}, {atoms} atoms, from {where}"


def prepare(job: Job) -> Prepared:
    """Reads and checks all input.

    Raises:
        UsageError: naming what is wrong with it.
    """
    settings, chosen = job.settings, ""
    if settings.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    use_cache(not job.options.no_cache)
    sources = read(settings.files, settings.format, settings.index)
    if settings.constraints == "drop":
        sources = [(path, i, dataclasses.replace(data, constraints=())) for path, i, data in sources]
    # Of all structures, so that the choice does not depend on their order.
    elements = {int(z) for _, _, data in sources for z in np.unique(data.numbers)}
    names = canonical(settings.model)
    if names is None:
        try:
            names, chosen = choose(elements)
        except ValueError as e:
            raise UsageError(f"--model is missing: {e}.") from None
    settings = settings.model_copy(update={"model": names})
    model = model_from(names)
    # After modules of the user's are found.
    hashes = model_hashes(names)
    try:
        engine = engine_of(settings, model)
        most = settings.max_atoms
        for first in range(0, len(sources), _CHECKED):
            data = [data for _, _, data in sources[first : first + _CHECKED]]
            for path, index, atoms in sources[first : first + _CHECKED]:
                if most is not None and len(atoms) > most:
                    raise UsageError(
                        f"{path}:{index} does not fit into a batch: it has {len(atoms)} atoms, "
                        f"max_atoms is {most}."
                    )
            batch = Batch.from_data_list(data, dtype=settings.dtype)
            check_constraints(name_of(engine), batch, "--constraints drop")
            check_systems(engine, batch)
    except UnknownElementError as e:
        raise UsageError(f"{e.problem}. {advice(elements)}.") from None
    except ValueError as e:
        raise UsageError(str(e)) from None
    options = job.options
    run = Prepared(settings, sources, engine, hashes, chosen, options.devices, options.cluster)
    devices_of(run)
    return run


def devices_of(run: Prepared) -> Any:
    """What the sampler of a run is given as `devices`.

    Raises:
        UsageError: if there are fewer than were asked for.
    """
    if run.cluster is not None:
        return None
    if run.devices is not None:
        try:
            asked = run.devices if run.devices == "all" else int(run.devices)
            as_devices(asked, "--devices")
        except ValueError as e:
            raise UsageError(str(e).replace("--devices: devices is", "--devices is")) from None
        return asked
    if jax.default_backend() != "cpu":
        return "all" if jax.local_device_count() > 1 else None
    size = world().size
    pays = cores_that_pay(run.engine.model, sum(map(len, run.data)) // size)
    return min(pays, -(-len(run.data) // size), _own_cores())


def _own_cores() -> int:
    """The cores for this process. Launchers bind processes to cores; others share those of a host."""
    cores = count_cores()
    return cores if cores < (os.cpu_count() or 1) else max(cores // processes_here(), 1)


@dataclasses.dataclass
class Ended:
    """How a run ended.

    Attributes:
        interrupted: by a signal, or because its time is up.
        seconds: it took. `compiling`: of these, for compiling or reading compiled programs; 0 if that was
        elsewhere.
        in_flight: the systems of the batch as they were when it was interrupted.
        atom_steps: how many steps this call took of some systems, times their atoms.
    """

    interrupted: bool
    seconds: float
    compiling: float
    in_flight: HostBatch | None = None
    atom_steps: Callable[[HostBatch], float] = lambda host: 0.0

    @property
    def running(self) -> float:
        """Seconds without compiling."""
        return max(self.seconds - self.compiling, 1e-9)


def stream(
    run: Prepared,
    at: Path,
    signals: Signals,
    *,
    begun: Callable[[int], Any],
    left: Callable[[int], str],
    hooks: Sequence[Any] = (),
    checkpoint_every: float = 60.0,
) -> Ended:
    """Run all systems, or go on with them from the newest checkpoint in the folder of results.

    Args:
        run, signals: as elsewhere. `at`: the folder of results.
        begun: called before anything is compiled with the number of systems that an earlier call has
        finished.
        left: what an interrupted run has left on disk, from the number of systems that are finished.
        hooks: more of them than the log.
        checkpoint_every: seconds.

    Raises:
        UsageError: if results cannot be read or written, or for a system that turns out not to be treatable.
    """
    settings = run.settings
    key = jax.random.key(getattr(settings, "seed", 0))
    started, interrupted, in_flight = time.perf_counter(), False, None
    own = int(is_own(np.arange(len(run.sources))).sum())
    watch = Watch(settings, own, shown=world().rank == 0)
    signals.describe = lambda: left(watch.finished)

    def goes_on(host: HostBatch | None) -> None:
        done = np.zeros(0, bool) if host is None else is_done(host, settings)
        watch.begin(host, done)
        begun(int(done.sum()))

    sink = FinishedSystems(at, goes_on)
    sink.count = watch.count
    folder = at / CHECKPOINTS
    checkpoints = CheckpointHook(folder, every_seconds=checkpoint_every, should_stop=signals.should_stop)
    engine = run.engine.with_hooks(log_of(settings, at / LOG), *hooks, checkpoints)
    sampler = Sampler(
        run.data,
        max_systems=settings.max_systems,
        max_atoms=settings.max_atoms,
        policy=settings.policy,
        dtype=settings.dtype,
        prepare=_velocities(settings, key),
        devices=devices_of(run),
    )
    signals.on_leave(watch.bar.close)
    with CompileTime() as compiling, contextlib.closing(watch), signals.asked():
        try:
            with warnings.catch_warnings():
                # Failed systems are in the table at the end.
                warnings.filterwarnings("ignore", category=RuntimeWarning, message=".* failed ")
                if run.cluster is None:
                    engine.with_hooks(watch).run(sampler=sampler, sink=sink, key=key, resume=folder)
                else:
                    run_over(run.cluster, engine, sampler, sink, key, folder, watch)
        except KeyboardInterrupt as e:
            interrupted = True
            state, in_flight = getattr(e, "state", None), getattr(e, "in_flight", None)
            if in_flight is None and state is not None:
                in_flight = state.batch.to_host()
        except ConnectionError as e:
            raise UsageError(f"{one_line(e)}") from None
        except (OSError, ValueError) as e:
            raise UsageError(describe_fault(e, at)) from None
        except OutOfMemory as e:
            bounds = "--max-systems and --max-atoms bound the batch of a run that begins"
            raise UsageError(f"{one_line(e).rstrip('.')}; {bounds}.") from None
    seconds = time.perf_counter() - started
    here = 0.0 if run.cluster is not None else compiling.seconds
    return Ended(interrupted, seconds, here, in_flight, watch.atom_steps)


def describe_fault(error: OSError | ValueError, at: Path) -> str:
    """What went wrong with a file or a structure, and what to do."""
    text = str(error)
    if isinstance(error, OSError):
        path = error.filename if isinstance(error.filename, str) else str(at)
        text = text if "cannot be written: " in text else f"{path} cannot be written: {os_reason(error)}"
        text = f"{text.rstrip('.')}; {KEPT}"
    elif isinstance(error, DamagedError):
        text = f"{text.rstrip('.')}: {INSTEAD}"
    # The library speaks of folders of checkpoints, here the user names the folder around them.
    for theirs, ours in ((ADVICE, INSTEAD), ("Give another folder to begin again", f"Here: {INSTEAD}")):
        text = text.replace(theirs, ours)
    text = text.replace("Give another folder", "Give another out, or --overwrite")
    return f"{' '.join(text.split()).rstrip('.')}."


def _velocities(settings: Pipeline, key: PRNGKeyArray) -> Any:
    first = settings.stages[0]
    if not isinstance(first, MD) or first.temperature is None:
        return None
    return draw_velocities(first.temperature, key)
