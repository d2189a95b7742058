"""`alchemi-jax relax`: files in, relaxed structures, a log and a picture out.

Systems go into `finished.zarr` as they finish. At the end, and where the run is interrupted, `relaxed.zarr`
and `relaxed.extxyz` are written, in the order of the input.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from alchemi_jax.cli.begin import Begun, begin
from alchemi_jax.cli.finished import FINISHED, read_finished
from alchemi_jax.cli.flags import Job
from alchemi_jax.cli.folder import CHECKPOINTS
from alchemi_jax.cli.inputs import INPUTS
from alchemi_jax.cli.outcome import INCOMPLETE, OK
from alchemi_jax.cli.processes import begin_together, connected, end_others
from alchemi_jax.cli.record import SETTINGS
from alchemi_jax.cli.report import print_rows, print_unfinished
from alchemi_jax.cli.results import Results
from alchemi_jax.cli.run import carry_out, left
from alchemi_jax.cli.settings import Relax
from alchemi_jax.cli.signals import Signals
from alchemi_jax.cli.stream import LOG, Ended
from alchemi_jax.cli.write import after_the_run, count_outcomes, whole_file, write_store, write_structures
from alchemi_jax.io.parts import parts_there
from alchemi_jax.shared import alone
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.outcome import Outcome


STORE, STRUCTURES, PICTURE = "relaxed.zarr", "relaxed.extxyz", "convergence.png"
OUTPUTS = (STORE, STRUCTURES, FINISHED, LOG, PICTURE, SETTINGS, INPUTS, CHECKPOINTS)


def relax(job: Job, signals: Signals) -> int:
    """The command; returns the exit code.

    Raises:
        UsageError: before anything is written, if something about the input is wrong; later, if results
            cannot be written.
    """
    with (
        connected(job.options, signals),
        Results(job.settings.out, OUTPUTS) as results,
        signals.limited(job.options.max_seconds),
    ):
        begun = begin_together(job, results, lambda: begin(job, results, "relax", (FINISHED, LOG)), "relax")
        ended = carry_out(begun, job, results, signals, [])
        if (code := end_others(ended, signals)) is not None:
            return code
        with alone():
            return _end(begun, results, ended, signals)


def _end(begun: Begun, results: Results, ended: Ended, signals: Signals) -> int:
    """Write what is made of all structures, and say what became of them."""
    final = _in_order(results.at, ended)
    if final is not None:
        with signals.files, after_the_run():
            _write(begun, results.at, final, ended.interrupted)
    if not ended.interrupted and final is not None and len(final) == len(begun.plan.sources):
        with signals.files, after_the_run():
            begun.finish(results)
    return _report(final, begun, results, ended, signals)


def _in_order(at: Path, ended: Ended) -> HostBatch | None:
    """All systems that were reached, in the order of the input: those that are finished, and the others as
    they were when the run was interrupted."""
    finished, several = read_finished(at), bool(parts_there(at / FINISHED))
    parts = [] if finished is None else [finished]
    # Of several processes each has others in flight, which its checkpoints have.
    if ended.in_flight is not None and not several:
        known = [] if finished is None else finished.system_id.tolist()
        new = ~np.isin(ended.in_flight.system_id, known)
        parts += [ended.in_flight.take(new)] if new.any() else []
    if not parts:
        return None
    host = HostBatch.concatenate(parts) if len(parts) > 1 else parts[0]
    return host.take(np.argsort(host.system_id, kind="stable"))


def _write(begun: Begun, at: Path, final: HostBatch, interrupted: bool) -> None:
    finished = final.outcome != Outcome.RUNNING
    if finished.any() and begun.writes(at / STORE):
        write_store(at / STORE, final.take(finished))
    if begun.writes(at / STRUCTURES):
        write_structures(at / STRUCTURES, final)
    if not interrupted and begun.writes(at / PICTURE):
        from alchemi_jax.cli.plot import convergence

        stage = begun.plan.settings.stages[0]
        assert isinstance(stage, Relax)
        with whole_file(at / PICTURE) as part:
            convergence(at / LOG, part, stage.fmax, final.atoms_per_system)


def _report(final: HostBatch | None, begun: Begun, results: Results, ended: Ended, signals: Signals) -> int:
    plan, sources = begun.plan, begun.plan.sources
    outcomes = np.zeros(0, int) if final is None else final.outcome
    n = len(outcomes)
    counts = dict.fromkeys((Outcome.CONVERGED, Outcome.OUT_OF_STEPS, Outcome.FAILED), 0)
    counts |= count_outcomes(outcomes)
    words = {Outcome.RUNNING: "interrupted" if ended.interrupted else "unfinished"}
    rows: list[tuple[str, Any]] = [("model", plan.model_names)]
    rows += [(words.get(outcome, outcome.text), k) for outcome, k in counts.items()]
    if n < len(sources):
        rows.append(("not begun", len(sources) - n))
    if final is not None:
        rows.append(("steps", f"{final.steps_taken.max()} (mean {final.steps_taken.mean():.1f})"))
    if ended.seconds:
        speed = 0.0 if final is None else ended.atom_steps(final) / ended.running
        rows += [("compiling", f"{ended.compiling:.1f} s")] if ended.compiling else []
        rows += [
            ("running", f"{ended.running:.1f} s, {speed:,.0f} atom-steps/s"),
        ]
    print_rows([*rows, ("results", ", ".join(results.made()))])
    if final is not None:
        print_unfinished(final, sources)
    if ended.interrupted:
        done = int((outcomes != Outcome.RUNNING).sum())
        signals.describe = lambda: left(plan, results, done)
        print(signals.sentence(), file=sys.stderr)
        return signals.exit_code
    return OK if n == len(sources) and (outcomes == Outcome.CONVERGED).all() else INCOMPLETE
