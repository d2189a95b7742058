"""`alchemi-jax relax`: files in, relaxed structures, a log and a picture out."""

import argparse
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from tqdm import tqdm

from alchemi_jax.cli.outcome import INCOMPLETE, INTERRUPTED, OK, UsageError, count_outcomes, write_structures
from alchemi_jax.cli.plot import convergence
from alchemi_jax.cli.read import model_from, read
from alchemi_jax.dynamics import FIRE, AbstractDynamics, ConvergenceHook, DynamicsState
from alchemi_jax.dynamics.finish import finalize
from alchemi_jax.dynamics.hooks import LoggingHook
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.observables import fmax
from alchemi_jax.systems.outcome import Outcome


OUTPUTS = ("relaxed.zarr", "relaxed.extxyz", "log.csv", "convergence.png")
_CHUNK_SECONDS = 0.3
#: So many unfinished structures are described, the others only listed.
_DETAILS = 20


def relax(args: argparse.Namespace) -> int:
    """The main job; returns the exit code.

    Raises:
        UsageError: before anything is written, if something about the input is wrong.
    """
    if not args.fmax > 0 or not np.isfinite(args.fmax):
        raise UsageError(f"--fmax must be positive, not {args.fmax}.")
    if args.steps < 1:
        raise UsageError(f"--steps must be at least 1, not {args.steps}.")
    if args.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    model = model_from(args.model)
    sources = read(args.files)
    batch = Batch.from_data_list([data for _, _, data in sources], dtype=args.dtype)
    try:
        model.check(batch)
    except ValueError as e:
        raise UsageError(str(e)) from None
    out = _prepare(Path(args.out), args.overwrite)

    # FIRE's dt of ASE, and the same largest one.
    engine = FIRE(
        model=model,
        n_steps=args.steps,
        hooks=[ConvergenceHook.from_fmax(args.fmax), LoggingHook(log_path=out / "log.csv", mode="w")],
    )
    where = "the sample set" if not args.files else f"{len(args.files)} file(s)"
    print(f"Relaxing {batch.num_systems} structures, {batch.num_atoms} atoms, from {where}.")
    begun = time.perf_counter()
    with warnings.catch_warnings():
        # Failed systems are in the table at the end.
        warnings.filterwarnings("ignore", category=RuntimeWarning, message=".* failed ")
        with engine:
            state, interrupted = _advance(engine, engine.init(batch), args.steps)
    took = time.perf_counter() - begun
    final = finalize(cast(AbstractDynamics, engine), state).to_host()
    ZarrData(out / "relaxed.zarr", mode="w").write(final)
    write_structures(out / "relaxed.extxyz", final)
    convergence(out / "log.csv", out / "convergence.png", args.fmax, final.atoms_per_system)
    return _report(final, sources, out, took, interrupted)


def _prepare(out: Path, overwrite: bool) -> Path:
    """The folder for results, made and known to be writable."""
    existing = [name for name in OUTPUTS if (out / name).exists()]
    if existing and not overwrite:
        raise UsageError(f"{out / existing[0]} exists: give another --out, or --overwrite to replace it.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".alchemi-jax"
        probe.touch()
        probe.unlink()
        for name in existing:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as e:
        raise UsageError(f"{out} cannot be written: {e.strerror or e}.") from None
    return out


def _advance(engine: FIRE, state: DynamicsState, steps: int) -> tuple[DynamicsState, bool]:
    """Steps to the end, a part of a second at a time, for the progress bar."""
    total = state.batch.num_systems
    atoms = np.asarray(state.batch.atoms_per_system)
    chunk, first = 10, True
    with tqdm(total=total, unit="system", dynamic_ncols=True) as bar:
        while True:
            batch = state.batch
            finished = int(np.sum((np.asarray(batch.status) >= engine.exit_status) & (atoms > 0)))
            bar.update(finished - bar.n)
            if finished == total or int(state.step_count) >= steps:
                return state, False
            begun, taken = time.perf_counter(), np.asarray(batch.steps_taken)
            try:
                state = engine.advance(state, min(chunk, steps - int(state.step_count)))
            except KeyboardInterrupt:
                return state, True
            seconds = time.perf_counter() - begun
            done = atoms * (np.asarray(state.batch.steps_taken) - taken)
            left = np.asarray(engine.active(state.batch))
            worst = np.max(np.asarray(fmax(state.batch))[left], initial=0.0)
            if not first:
                # The first chunk compiles.
                chunk = int(np.clip(chunk * _CHUNK_SECONDS / max(seconds, 1e-3), 1, 10 * chunk))
                speed = done.sum() / seconds
                bar.set_postfix_str(f"fmax {worst:.4f} eV/Å, {speed:,.0f} atom-steps/s")
            first = False


def _report(
    final: HostBatch,
    sources: list[tuple[Path, int, AtomicData]],
    out: Path,
    took: float,
    interrupted: bool,
) -> int:
    atom_steps = int((final.steps_taken.astype(np.int64) * final.atoms_per_system).sum())
    counts = dict.fromkeys((Outcome.CONVERGED, Outcome.OUT_OF_STEPS, Outcome.FAILED), 0)
    counts |= count_outcomes(final.outcome)
    words = {Outcome.RUNNING: "interrupted" if interrupted else "unfinished"}
    rows: list[tuple[str, Any]] = [
        *((words.get(outcome, outcome.text), n) for outcome, n in counts.items()),
        ("steps", f"{final.steps_taken.max()} (mean {final.steps_taken.mean():.1f})"),
        ("time", f"{took:.1f} s, compiling included"),
        ("speed", f"{atom_steps / took:,.0f} atom-steps/s"),
        ("results", ", ".join(str(out / name) for name in OUTPUTS)),
    ]
    print()
    for name, value in rows:
        print(f"  {name:14}{value}")
    worst = np.asarray(fmax(final))
    incomplete = np.flatnonzero(final.outcome != Outcome.CONVERGED).tolist()
    for i in incomplete[:_DETAILS]:
        path, index, _ = sources[i]
        what = final.outcome_text(i)
        if final.outcome[i] != Outcome.FAILED:
            what = "did not converge" if final.outcome[i] != Outcome.STOPPED else what
            what += f", fmax {worst[i]:.4f} eV/Å after {final.steps_taken[i]} steps"
        print(f"{path}, structure {index}: {what}.", file=sys.stderr)
    further: dict[Path, list[int]] = {}
    for i in incomplete[_DETAILS:]:
        further.setdefault(sources[i][0], []).append(sources[i][1])
    for path, indices in further.items():
        print(f"{path}, structures {', '.join(map(str, indices))}: likewise.", file=sys.stderr)
    if interrupted:
        return INTERRUPTED
    return INCOMPLETE if incomplete else OK
