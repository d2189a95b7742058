"""`alchemi-jax relax`: files in, relaxed structures, a log and a picture out."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from alchemi_jax.cli.flags import Job
from alchemi_jax.cli.folder import Results
from alchemi_jax.cli.models import model_files
from alchemi_jax.cli.outcome import INCOMPLETE, OK, UsageError, os_reason
from alchemi_jax.cli.record import SETTINGS, write_settings
from alchemi_jax.cli.report import print_rows, print_unfinished
from alchemi_jax.cli.settings import Relax, describe
from alchemi_jax.cli.signals import Signals
from alchemi_jax.cli.stream import Ended, Prepared, prepare, stream
from alchemi_jax.cli.watch import Watch
from alchemi_jax.cli.write import count_outcomes, whole_file, write_structures
from alchemi_jax.dynamics.sinks import HostMemory, ZarrData
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.outcome import Outcome


STORE, STRUCTURES, LOG, PICTURE = "relaxed.zarr", "relaxed.extxyz", "log.csv", "convergence.png"
OUTPUTS = (STORE, STRUCTURES, LOG, PICTURE, SETTINGS)


class RelaxedSystems(HostMemory):
    """Keeps finished systems, and stores each of them once, as soon as it is known to be finished.

    A system that was seen to be finished is stored as it is; the stress is evaluated when it leaves the
    batch, and the store is written again at the end.
    """

    def __init__(self, path: Path, signals: Signals):
        super().__init__()
        self.store, self.signals = ZarrData(path), signals
        self.watch: Watch | None = None
        self.stored: set[int] = set()

    def write(self, batch: Batch | HostBatch, mask: Any = None) -> None:
        host = batch.to_host(mask)
        with self.signals.files:
            super().write(host)
            self.put(host, np.ones(len(host), bool))
            if self.watch is not None:
                self.watch.count(host.system_id)

    def put(self, host: HostBatch, mask: np.ndarray) -> None:
        """Store systems that are not stored yet."""
        new = mask & ~np.isin(host.system_id, list(self.stored))
        if new.any():
            self.store.write(host, new)
            self.stored |= set(host.system_id[new].tolist())


def relax(job: Job, signals: Signals) -> int:
    """The command; returns the exit code.

    Structures are in the store as soon as they are finished. At the end it is written again in the order of
    the input, with what is evaluated at the end alone, the stress.

    Raises:
        UsageError: before anything is written, if something about the input is wrong.
    """
    with Results(job.settings.out, OUTPUTS) as results:
        return _relax(job, signals, results)


def _relax(job: Job, signals: Signals, results: Results) -> int:
    results.check(job.options.overwrite, [*job.settings.files, *model_files(job.settings.model)])
    run = prepare(job)
    results.begin()
    print(f"{describe(job.settings)}: {run.input}. {run.model}.", flush=True)
    at = results.at
    write_settings(at, run.settings, run.hashes, run.chosen)
    sink = RelaxedSystems(at / STORE, signals)

    def kept() -> str:
        n, of = len(sink.stored), len(run.sources)
        return f"{n} of {of} structures are relaxed, in {at / STORE}" if n else "nothing is finished"

    signals.describe = kept
    signals.on_leave(results.forget)
    try:
        ended = stream(run, at / LOG, sink, signals, take=sink.put)
    except UsageError:
        results.forget()
        raise
    with signals.files:
        final = _in_order(sink, ended)
        _replace_store(at / STORE, final[final.outcome != Outcome.RUNNING] if len(final) else None)
        write_structures(at / STRUCTURES, final)
        if not ended.interrupted:
            _draw(job, at, final)
            results.finish()
    return _report(final, run, results, ended, signals)


def _in_order(sink: RelaxedSystems, ended: Ended) -> Any:
    """All systems that were reached, in the order of the input: those that are finished, then the others."""
    parts = [sink.read()] if len(sink) else []
    if ended.unfinished is not None:
        known = parts[0].system_id if parts else np.zeros(0, int)
        left = ~np.isin(ended.unfinished.system_id, known)
        if left.any():
            parts.append(ended.unfinished.take(left))
    if not parts:
        return []
    host = HostBatch.concatenate(parts) if len(parts) > 1 else parts[0]
    return host.take(np.argsort(host.system_id, kind="stable"))


def _replace_store(path: Path, final: HostBatch | None) -> None:
    if final is None or not len(final):
        return
    new = path.with_name(f".new-{os.getpid()}-{path.name}")
    try:
        ZarrData(new, mode="w").write(final)
        old = path.with_name(f".old-{os.getpid()}-{path.name}")
        if path.exists():
            os.rename(path, old)
        os.rename(new, path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as e:
        raise UsageError(f"{path} cannot be written again with stresses: {os_reason(e)}.") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _draw(job: Job, at: Path, final: HostBatch) -> None:
    from alchemi_jax.cli.plot import convergence

    stage = job.settings.stages[0]
    assert isinstance(stage, Relax)
    with whole_file(at / PICTURE) as part:
        convergence(at / LOG, part, stage.fmax, final.atoms_per_system)


def _report(final: Any, run: Prepared, results: Results, ended: Ended, signals: Signals) -> int:
    n, sources = len(final), run.sources
    outcomes = final.outcome if n else np.zeros(0, int)
    steps = final.steps_taken if n else np.zeros(0, int)
    atom_steps = float((steps.astype(np.int64) * final.atoms_per_system).sum()) if n else 0.0
    counts = dict.fromkeys((Outcome.CONVERGED, Outcome.OUT_OF_STEPS, Outcome.FAILED), 0)
    counts |= count_outcomes(outcomes)
    words = {Outcome.RUNNING: "interrupted" if ended.interrupted else "unfinished"}
    rows: list[tuple[str, Any]] = [("model", run.model_names)]
    rows += [(words.get(outcome, outcome.text), k) for outcome, k in counts.items()]
    if n < len(sources):
        rows.append(("not begun", len(sources) - n))
    if n:
        rows.append(("steps", f"{steps.max()} (mean {steps.mean():.1f})"))
    rows += [
        ("compiling", f"{ended.compiling:.1f} s"),
        ("running", f"{ended.running:.1f} s, {atom_steps / ended.running:,.0f} atom-steps/s"),
        ("results", ", ".join(results.made())),
    ]
    print_rows(rows)
    if n:
        print_unfinished(final, sources)
    if ended.interrupted:
        signals.describe = lambda: _left(final, sources, results)
        print(signals.sentence(), file=sys.stderr)
        return signals.exit_code
    return OK if n == len(sources) and (outcomes == Outcome.CONVERGED).all() else INCOMPLETE


def _left(final: Any, sources: list, results: Results) -> str:
    done = int((final.outcome != Outcome.RUNNING).sum()) if len(final) else 0
    text = f"{done} of {len(sources)} structures are finished, in {results.at}"
    return text if results.at == results.out else f"{text}; the older results in {results.out} are kept"
