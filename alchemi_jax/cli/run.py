"""`alchemi-jax run` and `alchemi-jax md`: pipelines over many files, resumable by system.

In the folder of results: `finished.zarr` (systems as they come out), `trajectory.zarr` (frames), `log.csv`,
`settings.json`, and at the end `final.extxyz` and `summary.png`. A system is in `finished.zarr` only when its
rows and frames are on disk; a second call goes on with those that are not.
"""

import argparse
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from tqdm import tqdm

from alchemi_jax.cli.config import MD, Pipeline, Relax, load, validate
from alchemi_jax.cli.outcome import INCOMPLETE, INTERRUPTED, OK, UsageError, count_outcomes, write_structures
from alchemi_jax.cli.read import model_from, read
from alchemi_jax.cli.table import Table, means, picture
from alchemi_jax.dynamics import Sampler
from alchemi_jax.dynamics.api import draw_velocities, integrator, relaxation
from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.hooks import LoggingHook, SnapshotHook
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.io.trajectory import Trajectory
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.systems.outcome import Outcome


FINISHED, FRAMES, LOG, SETTINGS = "finished.zarr", "trajectory.zarr", "log.csv", "settings.json"
RESULTS = (FINISHED, FRAMES, LOG, SETTINGS, "final.extxyz", "summary.png")
#: What another call may change and still go on with the same results.
_FREE = ("out", "max_systems", "max_atoms", "policy")
_DETAILS = 20


def run(args: argparse.Namespace) -> int:
    """`alchemi-jax run`; returns the exit code.

    Raises:
        UsageError: before anything is written, if something about the input is wrong.
    """
    return execute(load(args.pipeline, args.overrides), args.overwrite)


def md(args: argparse.Namespace) -> int:
    """`alchemi-jax md`: a pipeline of one stage.

    Raises:
        UsageError: as `run`.
    """
    names = ("ensemble", "temperature", "pressure", "friction", "dt")
    stage = {name: value for name in names if (value := getattr(args, name)) is not None}
    stages = [{"kind": "md", "n_steps": args.steps, **stage}]
    if args.relax is not None:
        stages.insert(0, {"kind": "relax", "fmax": args.relax})
    same = ("files", "model", "out", "dtype", "seed", "max_systems", "max_atoms", "log_every", "save_every")
    content = {name: value for name in same if (value := getattr(args, name)) is not None}
    content["stages"] = stages
    return execute(validate(content, "arguments"), args.overwrite)


def execute(settings: Pipeline, overwrite: bool) -> int:
    """Runs a pipeline, or what is left of it; returns the exit code."""
    if settings.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    model = model_from(settings.model)
    sources = read(settings.files)
    data = [d for _, _, d in sources]
    out = Path(settings.out)
    done = _begin(out, settings, overwrite)
    frames = ZarrData(out / FRAMES)
    try:
        engine = _engine(settings, model, out, frames)
        key = jax.random.key(settings.seed)
        sampler = Sampler(
            data,
            max_systems=settings.max_systems,
            max_atoms=settings.max_atoms,
            policy=settings.policy,
            dtype=settings.dtype,
            skip=done,
            prepare=_velocities(settings, key),
        )
    except ValueError as e:
        raise UsageError(str(e)) from None
    atoms = sum(map(len, data))
    where = "the sample set" if not settings.files else f"{len(settings.files)} file(s)"
    resumed = f", {len(done)} of them done before" if done else ""
    print(f"{_describe(settings)}: {len(data)} structures, {atoms} atoms, from {where}{resumed}.")
    begun, interrupted = time.perf_counter(), False
    with tqdm(total=len(data), initial=len(done), unit="system", dynamic_ncols=True) as bar:
        sink = _Finished(out / FINISHED, frames, bar)
        if len(done) < len(data):
            try:
                with warnings.catch_warnings():
                    # Failed systems are in the table at the end.
                    warnings.filterwarnings("ignore", category=RuntimeWarning, message=".* failed ")
                    engine.run(sampler=sampler, sink=sink, key=key)
            except KeyboardInterrupt:
                interrupted = True
            except ValueError as e:
                if len(sink):
                    raise
                raise UsageError(str(e)) from None
    return _report(settings, sources, out, time.perf_counter() - begun, interrupted)


class _Finished(ZarrData):
    """Commits each write, after the frames of the same systems; and moves the bar."""

    def __init__(self, path: Path, frames: ZarrData, bar: Any):
        super().__init__(path)
        self.frames, self.bar = frames, bar

    def write(self, batch: Any, mask: Any = None) -> None:
        before = len(self)
        self.frames.commit()
        super().write(batch, mask)
        self.commit()
        self.bar.update(len(self) - before)


def _engine(settings: Pipeline, model: AbstractModel, out: Path, frames: ZarrData) -> AbstractDynamics:
    engines = [_stage(stage, model) for stage in settings.stages]
    engine = engines[0]
    for other in engines[1:]:
        engine = engine + other
    hooks: list[Any] = [LoggingHook(log_path=out / LOG, frequency=settings.log_every)]
    if settings.save_every:
        hooks.append(SnapshotHook(frames, settings.save_every, finished=False))
    return engine.with_hooks(*hooks)


def _stage(stage: Relax | MD, model: AbstractModel) -> AbstractDynamics:
    given = stage.model_dump(exclude={"kind"}, exclude_none=True)
    if isinstance(stage, Relax):
        if not stage.relax_cell:
            given = {name: given[name] for name in ("fmax", "n_steps")}
        return relaxation(model, **given)
    if stage.ensemble == "nve":
        given.pop("temperature", None)
    return integrator(model, **given)


def _velocities(settings: Pipeline, key: PRNGKeyArray) -> Any:
    first = settings.stages[0]
    if not isinstance(first, MD) or first.temperature is None:
        return None
    return draw_velocities(first.temperature, key)


def _begin(out: Path, settings: Pipeline, overwrite: bool) -> set[int]:
    """Makes the folder, or checks what an earlier call of the same run left: ids of finished systems."""
    wanted = settings.model_dump(mode="json")
    existing = [name for name in RESULTS if (out / name).exists()]
    if existing and not overwrite:
        try:
            found = json.loads((out / SETTINGS).read_text())
        except (OSError, ValueError):
            raise UsageError(f"{out / existing[0]} exists: give another out, or --overwrite.") from None
        odd = [n for n in wanted if n not in _FREE and found.get(n) != wanted[n]]
        if odd:
            raise UsageError(
                f"{out} holds results of other settings, {odd[0]} differs: give another out, or --overwrite."
            )
        return _go_on(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in existing:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (out / SETTINGS).write_text(json.dumps(wanted, indent=1) + "\n")
    except OSError as e:
        raise UsageError(f"{out} cannot be written: {e.strerror or e}.") from None
    return set()


def _go_on(out: Path) -> set[int]:
    """Ids of finished systems. Rows and frames of the others are removed: they begin again."""
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


def _describe(settings: Pipeline) -> str:
    parts = []
    for stage in settings.stages:
        if isinstance(stage, Relax):
            parts.append(f"relax{' with cells' * stage.relax_cell} to {stage.fmax:g} eV/Å")
        else:
            at = "" if stage.temperature is None else f" at {stage.temperature:g} K"
            at += "" if stage.pressure is None else f" and {stage.pressure:g} GPa"
            parts.append(f"{stage.n_steps} steps of {stage.dt:g} fs {stage.ensemble}{at}")
    text = ", then ".join(parts)
    return text[0].upper() + text[1:]


def _report(settings: Pipeline, sources: list, out: Path, took: float, interrupted: bool) -> int:
    finished, counts = 0, {}
    if (out / FINISHED).exists() and len(ZarrData(out / FINISHED)):
        host = ZarrData(out / FINISHED).read()
        host = host.take(np.argsort(host.system_id))
        write_structures(out / "final.extxyz", host)
        finished, counts = len(host), count_outcomes(host.outcome)
        for i in np.flatnonzero(host.outcome >= Outcome.STOPPED).tolist()[:_DETAILS]:
            path, index, _ = sources[int(host.system_id[i])]
            print(f"{path}, structure {index}: {host.outcome_text(i)}.", file=sys.stderr)
    converged, failed, stopped = (
        counts.get(outcome, 0) for outcome in (Outcome.CONVERGED, Outcome.FAILED, Outcome.STOPPED)
    )
    rows: list[tuple[str, Any]] = [("finished", f"{finished} of {len(sources)}")]
    relaxes = any(isinstance(stage, Relax) for stage in settings.stages)
    if relaxes:
        rows.append(("converged", converged))
    rows += [("stopped", stopped)] if stopped else []
    rows += [("failed", failed), ("time", f"{took:.1f} s, compiling included")]
    print()
    for name, value in rows:
        print(f"  {name:14}{value}")
    table = Table.read(out / LOG) if (out / LOG).exists() else None
    if table is not None and len(table.step):
        sizes = {i: len(data) for i, (_, _, data) in enumerate(sources)}
        for code, stage in enumerate(settings.stages):
            if isinstance(stage, MD):
                print(f"\n  {'stage ' + str(code):14}means over its steps, with standard errors from blocks")
                for name, text in means(table, code, sizes):
                    print(f"  {name:14}{text}")
        picture(table, sizes, out / "summary.png", _describe(settings))
    made = [str(out / name) for name in RESULTS if (out / name).exists()]
    print(f"\n  {'results':14}{', '.join(made)}")
    if interrupted:
        print("interrupted: the same command goes on with the systems that are left.", file=sys.stderr)
        return INTERRUPTED
    ended_well = finished == len(sources) and not failed + stopped
    return OK if ended_well and (not relaxes or converged == finished) else INCOMPLETE
