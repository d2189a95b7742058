"""`alchemi-jax run` and `alchemi-jax md`: pipelines over many files, resumable by system.

In the folder of results: `finished.zarr` (systems as they come out), `trajectory.zarr` (frames), `log.csv`,
`settings.json`, and at the end `final.extxyz` and `summary.png`. A system is in `finished.zarr` only when its
rows and frames are on disk; a second call goes on with those that are not.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from alchemi_jax.cli.flags import Job
from alchemi_jax.cli.folder import Results
from alchemi_jax.cli.models import canonical, model_files
from alchemi_jax.cli.outcome import INCOMPLETE, OK, UsageError, os_reason
from alchemi_jax.cli.record import SETTINGS, check_same, write_settings
from alchemi_jax.cli.report import print_rows
from alchemi_jax.cli.settings import MD, Relax, describe
from alchemi_jax.cli.signals import Signals
from alchemi_jax.cli.stream import Ended, FinishedSystems, Prepared, prepare, stream
from alchemi_jax.cli.table import Table, means, picture
from alchemi_jax.cli.write import count_outcomes, whole_file, write_structures
from alchemi_jax.dynamics.hooks import SnapshotHook
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.io.trajectory import Trajectory
from alchemi_jax.systems.outcome import Outcome


FINISHED, FRAMES, LOG = "finished.zarr", "trajectory.zarr", "log.csv"
RESULTS = (FINISHED, FRAMES, LOG, SETTINGS, "final.extxyz", "summary.png")
_DETAILS = 20


def run(job: Job, signals: Signals) -> int:
    """The command, also as `md`, a pipeline of one or two stages; returns the exit code.

    Raises:
        UsageError: before anything is written, if something about the input is wrong.
    """
    with Results(job.settings.out, RESULTS) as results:
        return _run(job, signals, results)


def _run(job: Job, signals: Signals, results: Results) -> int:
    settings = job.settings
    goes_on = bool(results.existing()) and not job.options.overwrite
    if goes_on:
        check_same(results, settings.model_copy(update={"model": canonical(settings.model)}))
    else:
        results.check(job.options.overwrite, [*settings.files, *model_files(settings.model)])
    plan = prepare(job)
    settings = plan.settings
    if goes_on:
        results.hold()
        check_same(results, settings, plan.hashes)
        done = _go_on(results.at)
    else:
        done = set()
        results.begin()
        write_settings(results.at, settings, plan.hashes, plan.chosen)
    resumed = f", {len(done)} of them done before" if done else ""
    print(f"{describe(settings)}: {plan.input}{resumed}. {plan.model}.", flush=True)
    at = results.at
    frames = ZarrData(at / FRAMES)
    sink = FinishedSystems(at / FINISHED, signals, frames)
    signals.describe = lambda: _left(plan, results, len(sink))
    signals.on_leave(results.forget)
    signals.on_leave(frames.commit)
    hooks = []
    if settings.save_every:
        # Frames begin with the structure that was given and end with the last one.
        at_steps = DynamicsStage.BEFORE_STEP
        hooks = [SnapshotHook(frames, settings.save_every, finished=False, stage=at_steps, final=True)]
    ended = Ended(False, 0.0, 0.0)
    if len(done) < len(plan.sources):
        try:
            ended = stream(plan, at / LOG, sink, signals, done=done, hooks=hooks)
        except UsageError:
            results.forget()
            raise
    return _report(plan, results, ended, signals, done)


md = run


def _left(plan: Prepared, results: Results, done: int) -> str:
    text = f"{done} of {len(plan.sources)} structures are finished, in {results.at}"
    if results.at != results.out:
        return f"{text}; the older results in {results.out} are kept"
    return f"{text}; the same command goes on with the others"


def _go_on(out: Path) -> set[int]:
    """Ids of finished systems. Rows and frames of the others are removed: they begin again."""
    try:
        return _keep_finished(out)
    except OSError as e:
        raise UsageError(f"{out} cannot be written: {os_reason(e)}.") from None


def _keep_finished(out: Path) -> set[int]:
    ids: set[int] = set()
    if (out / FINISHED).exists() and len(ZarrData(out / FINISHED)):
        ids = set(Trajectory(out / FINISHED)["system_id"][:].tolist())
    if (out / FRAMES).exists() and len(ZarrData(out / FRAMES)):
        frames = Trajectory(out / FRAMES)
        if not set(frames.system_ids.tolist()) <= ids:
            fresh = ZarrData(out / (FRAMES + ".new"), mode="w")
            fresh.open()
            for frame in frames:
                fresh.write(frame, np.isin(frame.system_id, list(ids)))
            fresh.close()
            shutil.rmtree(out / FRAMES)
            os.replace(out / (FRAMES + ".new"), out / FRAMES)
    if (out / LOG).exists():
        first, *rows = (out / LOG).read_text().splitlines(keepends=True)
        column = first.rstrip("\n").split(",").index("system_id")
        # A row that broke off has no end.
        kept = [r for r in rows if r.endswith("\n") and int(r.split(",")[column]) in ids]
        (out / (LOG + ".new")).write_text("".join([first, *kept]))
        os.replace(out / (LOG + ".new"), out / LOG)
    return ids


def _report(plan: Prepared, results: Results, ended: Ended, signals: Signals, done: set[int]) -> int:
    out, sources, settings = results.at, plan.sources, plan.settings
    finished, counts, steps = 0, {}, 0.0
    if (out / FINISHED).exists() and len(ZarrData(out / FINISHED)):
        host = ZarrData(out / FINISHED).read()
        host = host.take(np.argsort(host.system_id))
        with signals.files:
            write_structures(out / "final.extxyz", host)
        finished, counts = len(host), count_outcomes(host.outcome)
        for i in np.flatnonzero(host.outcome >= Outcome.STOPPED).tolist()[:_DETAILS]:
            path, index, _ = sources[int(host.system_id[i])]
            print(f"{path}, structure {index}: {host.outcome_text(i)}.", file=sys.stderr)
        new = ~np.isin(host.system_id, list(done))
        steps = float((host.steps_taken.astype(np.int64) * host.atoms_per_system)[new].sum())
    converged, failed, stopped = (
        counts.get(outcome, 0) for outcome in (Outcome.CONVERGED, Outcome.FAILED, Outcome.STOPPED)
    )
    rows: list[tuple[str, Any]] = [("model", plan.model_names), ("finished", f"{finished} of {len(sources)}")]
    relaxes = any(isinstance(stage, Relax) for stage in settings.stages)
    if relaxes:
        rows.append(("converged", converged))
    rows += [("stopped", stopped)] if stopped else []
    rows += [("failed", failed)]
    if ended.seconds:
        rows += [("compiling", f"{ended.compiling:.1f} s")]
        speed = "" if ended.interrupted else f", {steps / ended.running:,.0f} atom-steps/s"
        rows += [("running", f"{ended.running:.1f} s{speed}")]
    print_rows(rows)
    if not ended.interrupted:
        _summarize(plan, out)
        with signals.files:
            results.finish()
    print_rows([("results", ", ".join(results.made()))])
    if ended.interrupted:
        signals.describe = lambda: _left(plan, results, finished)
        print(signals.sentence(), file=sys.stderr)
        return signals.exit_code
    ended_well = finished == len(sources) and not failed + stopped
    return OK if ended_well and (not relaxes or converged == finished) else INCOMPLETE


def _summarize(plan: Prepared, out: Path) -> None:
    """Means of each stage of dynamics, and the picture."""
    table = Table.read(out / LOG) if (out / LOG).exists() else None
    if table is None or not len(table.step):
        return
    sizes = {i: len(data) for i, data in enumerate(plan.data)}
    for code, stage in enumerate(plan.settings.stages):
        if isinstance(stage, MD):
            print(f"\n  {'stage ' + str(code):14}means over its steps, with standard errors from blocks")
            for name, text in means(table, code, stage, sizes):
                print(f"  {name:14}{text}")
    stages = plan.settings.stages
    with whole_file(out / "summary.png") as part:
        picture(table, sizes, part, describe(plan.settings), list(stages))
