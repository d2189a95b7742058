"""`alchemi-jax run` and `alchemi-jax md`: pipelines over many files, which the same command goes on with.

In the folder of results: `finished.zarr` (systems as they come out), `trajectory.zarr` (frames), `log.csv`,
`settings.json`, `inputs.json`, `checkpoints`, and at the end `final.extxyz` and `summary.png`. A second call
goes on from the newest checkpoint, in the middle of a system; what was written after it is cut off and
written again, bit for bit.
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
from alchemi_jax.cli.outcome import INCOMPLETE, INSTEAD, OK, UsageError, one_line
from alchemi_jax.cli.processes import begin_together, connected, end_others, is_first
from alchemi_jax.cli.record import SETTINGS
from alchemi_jax.cli.report import print_rows
from alchemi_jax.cli.results import Results
from alchemi_jax.cli.settings import MD, Relax, describe
from alchemi_jax.cli.signals import Signals
from alchemi_jax.cli.stream import LOG, Ended, Prepared, stream
from alchemi_jax.cli.table import Table, means, picture
from alchemi_jax.cli.write import after_the_run, count_outcomes, whole_file, write_structures
from alchemi_jax.dynamics.hooks import SnapshotHook
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.io.parts import part_paths
from alchemi_jax.shared import alone, note_interrupted, world
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.outcome import Outcome


FRAMES, STRUCTURES, PICTURE = "trajectory.zarr", "final.extxyz", "summary.png"
RESULTS = (FINISHED, FRAMES, LOG, SETTINGS, INPUTS, CHECKPOINTS, STRUCTURES, PICTURE)
_DETAILS = 20


def run(job: Job, signals: Signals) -> int:
    """The command, also as `md`, a pipeline of one or two stages; returns the exit code.

    Raises:
        UsageError: before anything is written, if something about the input is wrong; later, if results
            cannot be written.
    """
    with (
        connected(job.options, signals),
        Results(job.settings.out, RESULTS) as results,
        signals.limited(job.options.max_seconds),
    ):
        kept = (FINISHED, LOG, FRAMES) if job.settings.save_every else (FINISHED, LOG)
        command = signals.command or "run"
        begun = begin_together(job, results, lambda: begin(job, results, command, kept), command)
        hooks = []
        if job.settings.save_every:
            # Frames begin with the structure that was given and end with the last one.
            frames, at_steps = ZarrData(results.at / FRAMES), DynamicsStage.BEFORE_STEP
            every = job.settings.save_every
            hooks = [SnapshotHook(frames, every, finished=False, stage=at_steps, final=True)]
        ended = carry_out(begun, job, results, signals, hooks)
        code = end_others(ended, signals)
        if code is not None:
            return code
        with alone():
            return _report(begun, results, ended, signals)


md = run


def carry_out(begun: Begun, job: Job, results: Results, signals: Signals, hooks: list[Any]) -> Ended:
    """All steps that are left; says before them what is run.

    Raises:
        UsageError: if results cannot be read or written.
    """
    plan = begun.plan

    def say(resumed: str) -> None:
        if is_first():
            print(f"{describe(plan.settings)}: {plan.input}{resumed}. {plan.model}.", flush=True)

    def goes_on(done: int) -> None:
        if begun.goes_on:
            say(f", {done} of them done before" if done else ", going on with what was saved")

    if begun.complete:
        say(f", {len(plan.sources)} of them done before")
        return Ended(False, 0.0, 0.0)
    if not begun.goes_on:
        say("")
    several = world().size > 1
    if not several:
        signals.on_leave(results.forget)
    try:
        ended = stream(
            plan,
            results.at,
            signals,
            begun=goes_on,
            left=lambda done: left(plan, results, done),
            hooks=hooks,
            checkpoint_every=job.options.checkpoint_every,
        )
    except UsageError:
        # Of several processes another one may have begun to write.
        if not several:
            results.forget()
        raise
    if ended.interrupted:
        note_interrupted()
    return ended


def left(plan: Prepared, results: Results, done: int) -> str:
    """What an interrupted run has left on disk."""
    if not (results.at / SETTINGS).exists():
        return "nothing is finished"
    text = f"{done} of {len(plan.sources)} structures are finished, in {results.at}"
    if results.at != results.out:
        text += f", and the older results in {results.out} are kept"
    others = "goes on with the others" if done < len(plan.sources) else "ends the run"
    return f"{text}; the same command {others}"


def _report(begun: Begun, results: Results, ended: Ended, signals: Signals) -> int:
    plan, at, sources = begun.plan, results.at, begun.plan.sources
    host = read_finished(at)
    finished = 0 if host is None else len(host)
    counts = {} if host is None else count_outcomes(host.outcome)
    if host is not None:
        if begun.writes(at / STRUCTURES):
            with signals.files, after_the_run():
                write_structures(at / STRUCTURES, host)
        _name_unfinished(host, sources)
    converged, failed, stopped = (
        counts.get(outcome, 0) for outcome in (Outcome.CONVERGED, Outcome.FAILED, Outcome.STOPPED)
    )
    rows: list[tuple[str, Any]] = [("model", plan.model_names), ("finished", f"{finished} of {len(sources)}")]
    relaxes = any(isinstance(stage, Relax) for stage in plan.settings.stages)
    if relaxes:
        rows.append(("converged", converged))
    rows += [("stopped", stopped)] if stopped else []
    rows += [("failed", failed)]
    if ended.seconds:
        rows += [("compiling", f"{ended.compiling:.1f} s")] if ended.compiling else []
        steps = 0.0 if host is None else ended.atom_steps(host)
        speed = "" if ended.interrupted else f", {steps / ended.running:,.0f} atom-steps/s"
        rows += [("running", f"{ended.running:.1f} s{speed}")]
    print_rows(rows)
    if not ended.interrupted:
        _summarize(plan, at, draws=begun.writes(at / PICTURE))
        if finished == len(sources):
            with signals.files, after_the_run():
                begun.finish(results)
    print_rows([("results", ", ".join(results.made()))])
    if ended.interrupted:
        signals.describe = lambda: left(plan, results, finished)
        print(signals.sentence(), file=sys.stderr)
        return signals.exit_code
    ended_well = finished == len(sources) and not failed + stopped
    return OK if ended_well and (not relaxes or converged == finished) else INCOMPLETE


def _name_unfinished(host: HostBatch, sources: list) -> None:
    for i in np.flatnonzero(host.outcome >= Outcome.STOPPED).tolist()[:_DETAILS]:
        path, index, _ = sources[int(host.system_id[i])]
        print(f"{path}, structure {index}: {host.outcome_text(i)}.", file=sys.stderr)


def _summarize(plan: Prepared, at: Path, draws: bool) -> None:
    """Means of each stage of dynamics, and the picture."""
    try:
        table = Table.read(at / LOG) if part_paths(at / LOG)[0].exists() else None
    except ValueError as e:
        raise UsageError(f"{at / LOG} cannot be read: {one_line(e)}: {INSTEAD}.") from None
    if table is None or not len(table.step):
        return
    sizes = {i: len(data) for i, data in enumerate(plan.data)}
    for code, stage in enumerate(plan.settings.stages):
        if isinstance(stage, MD):
            print(f"\n  {'stage ' + str(code):14}means over its steps, with standard errors from blocks")
            for name, text in means(table, code, stage, sizes):
                print(f"  {name:14}{text}")
    if not draws:
        return
    stages = plan.settings.stages
    with after_the_run(), whole_file(at / PICTURE) as part:
        picture(table, sizes, part, describe(plan.settings), list(stages))
