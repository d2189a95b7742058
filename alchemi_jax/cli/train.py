"""`alchemi-jax train`: a TOML file in, a trained model, logs, a report and pictures out.

In the folder of results: `settings.json`, `inputs.json`, `checkpoints`, `log.csv`, `validation.csv`, and at
the end `model`, `report.json`, `loss.png` and `parity.png`. The same command goes on from the newest
checkpoint; rows that were written after it are cut off and written again, bit for bit.
"""

import contextlib
import dataclasses
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from alchemi_jax.cli.cache import CompileTime
from alchemi_jax.cli.flags import TrainJob
from alchemi_jax.cli.folder import CHECKPOINTS, MODEL
from alchemi_jax.cli.inputs import INPUTS
from alchemi_jax.cli.outcome import INCOMPLETE, OK, UsageError, one_line
from alchemi_jax.cli.record import SETTINGS
from alchemi_jax.cli.report import print_rows
from alchemi_jax.cli.results import Results
from alchemi_jax.cli.signals import Signals
from alchemi_jax.cli.stream import describe_fault
from alchemi_jax.cli.swap import repaired
from alchemi_jax.cli.train_begin import TrainBegun, begin_training, look_at_training
from alchemi_jax.cli.train_hooks import BestModel, TrainWatch
from alchemi_jax.cli.train_plan import (
    LOG,
    VALIDATIONS,
    TrainPlan,
    describe_training,
    energies_text,
    rows_of,
)
from alchemi_jax.cli.train_plot import loss_picture, parity_picture, read_log
from alchemi_jax.cli.train_record import flat, read_train_record
from alchemi_jax.cli.train_report import REPORT, compare, named_results, read_report, table, write_report
from alchemi_jax.cli.write import after_the_run, whole_file
from alchemi_jax.dynamics.hooks import CheckpointHook
from alchemi_jax.errors import OutOfMemory
from alchemi_jax.training.trainer import Trainer


LOSSES, PARITY = "loss.png", "parity.png"
RESULTS = (MODEL, REPORT, LOSSES, PARITY, LOG, VALIDATIONS, SETTINGS, INPUTS, CHECKPOINTS)


@dataclasses.dataclass
class TrainEnded:
    """How a call ended.

    Attributes:
        trainer, best: with which it ran. state: reached.
        fault: what was not finite; "" if nothing.
        interrupted: by a signal, or because its time is up.
        steps, seconds, compiling: of this call.
    """

    trainer: Trainer
    best: BestModel | None
    state: Any
    fault: str
    interrupted: bool
    steps: int
    seconds: float
    compiling: float

    @property
    def model(self) -> Any:
        """The model that is kept: of the best validation, or of the last step."""
        found = None if self.best is None else self.best.model(self.trainer)
        return self.trainer.averaged(self.state) if found is None else found

    @property
    def model_step(self) -> int:
        """The step that it is of."""
        return int(self.state.step_count) if self.best is None or self.best.step < 0 else self.best.step


def train(job: TrainJob, signals: Signals) -> int:
    """The command; returns the exit code.

    Raises:
        UsageError: before anything is written, if something about the input is wrong; later, if results
            cannot be written.
    """
    if job.options.report:
        return _show(job)
    assert job.settings is not None, "parse reads the file"
    out = job.settings.run.out
    if job.options.check:
        plan, what = look_at_training(job, Results(out, RESULTS))
        print(f"{describe_training(plan)}.")
        print_rows([*rows_of(plan), ("this command", what)])
        return OK
    with Results(out, RESULTS) as results, signals.limited(job.options.max_seconds):
        if (results.out / CHECKPOINTS).exists():
            signals.describe = lambda: "what was saved is kept, and the same command goes on"
        begun = begin_training(job, results)
        more = "" if not begun.goes_on else ", complete before" if begun.complete else ", going on"
        print(f"{describe_training(begun.plan)}{more}.", flush=True)
        if begun.complete:
            begun.finish(results)
            return _show_folder(results.out)
        return _run(begun, job, results, signals)


def _run(begun: TrainBegun, job: TrainJob, results: Results, signals: Signals) -> int:
    signals.on_leave(results.forget)
    try:
        ended = _train(begun.plan, job, results, signals)
    except UsageError:
        results.forget()
        raise
    step = int(ended.state.step_count)
    if step:
        with signals.files, after_the_run():
            _save_model(results.at, begun.plan, ended, {})
    rows: list[tuple[str, Any]] = [
        ("steps", f"{step} of {begun.plan.n_steps}"),
        ("compiling", f"{ended.compiling:.1f} s"),
    ]
    running = max(ended.seconds - ended.compiling, 1e-9)
    speed = f", {ended.steps / running:,.0f} steps/s" if ended.steps else ""
    rows.append(("running", f"{running:.1f} s{speed}"))
    if ended.interrupted or ended.fault:
        print_rows([*rows, ("results", ", ".join(results.made()))])
        if ended.interrupted:
            signals.describe = lambda: _left(begun.plan, results, step)
            print(signals.sentence(), file=sys.stderr)
            return signals.exit_code
        print(f"alchemi-jax train: {ended.fault}.", file=sys.stderr)
        return INCOMPLETE
    if step < begun.plan.n_steps:
        rows.append(("ended early", "the loss on validation fell no longer"))
    print_rows(rows)
    signals.describe = lambda: (
        f"the training is done, its report is not, in {results.at}; the same command ends it"
    )
    report = _make_report(begun.plan, ended, results, signals)
    with signals.files, after_the_run():
        begun.finish(results)
    _print_report(results.out, report)
    print_rows(
        [("results", ", ".join(results.made())), ("to use it", f"--model trained:{results.out / MODEL}")]
    )
    return OK


def _left(plan: TrainPlan, results: Results, step: int) -> str:
    """What an interrupted training has left on disk."""
    if not (results.at / CHECKPOINTS).exists():
        return "nothing had been computed"
    text = f"{step} of {plan.n_steps} steps are done, in {results.at}"
    if results.at != results.out:
        text += f", and the older results in {results.out} are kept"
    return f"{text}; the same command goes on"


def _train(plan: TrainPlan, job: TrainJob, results: Results, signals: Signals) -> TrainEnded:
    """All steps that are left.

    Raises:
        UsageError: if results cannot be read or written.
    """
    at, started = results.at, time.perf_counter()
    hooks, best = plan.host_hooks(at)
    watch = TrainWatch(plan.n_steps)
    folder = at / CHECKPOINTS
    checkpoints = CheckpointHook(
        folder, every_seconds=job.options.checkpoint_every, should_stop=signals.should_stop
    )
    trainer = plan.trainer([*hooks, watch, checkpoints])
    run = plan.settings.run
    signals.describe = lambda: "what was saved is kept, and the same command goes on"
    signals.on_leave(watch.bar.close)
    interrupted, fault = False, ""
    with CompileTime() as compiling, contextlib.closing(watch), signals.asked():
        try:
            with warnings.catch_warnings():
                # Hooks of logs that begin.
                warnings.filterwarnings("ignore", category=RuntimeWarning, message=".* has been removed")
                state = trainer.run(
                    plan.data,
                    run.epochs,
                    n_steps=run.n_steps,
                    resume=folder,
                    key=plan.keys[1],
                    devices=plan.devices,
                )
        except (KeyboardInterrupt, FloatingPointError) as e:
            state = getattr(e, "state", None)
            if state is None:
                raise
            interrupted = isinstance(e, KeyboardInterrupt)
            fault = "" if interrupted else _not_finite(e)
        except (OSError, ValueError) as e:
            raise UsageError(describe_fault(e, at)) from None
        except OutOfMemory as e:
            bounds = "data.max_systems, max_atoms and max_edges bound a batch"
            raise UsageError(f"{one_line(e).rstrip('.')}; {bounds}.") from None
        watch.show(int(state.step_count))
    seconds = time.perf_counter() - started
    steps = int(state.step_count) - watch.begun
    return TrainEnded(trainer, best, state, fault, interrupted, steps, seconds, compiling.seconds)


def _not_finite(error: BaseException) -> str:
    text = one_line(error).partition(": look at")[0]
    return (
        f"{text}: look at the labels of these structures, or begin again with a lower optimizer.rate or with "
        "optimizer.clip, in another run.out or with --overwrite"
    )


def _about(plan: TrainPlan, ended: TrainEnded) -> dict[str, Any]:
    """What the model is of. No place and no time: two trainings that are the same have the same."""
    settings: dict[str, dict[str, Any]] = {}
    for (name, key), value in flat(plan.settings).items():
        if key not in ("out", "train", "validation") and value is not None:
            settings.setdefault(name, {})[key] = value
    return {
        "step": ended.model_step,
        "structures": sum(map(len, plan.sets.train)),
        "settings": settings,
        "subtracted": plan.subtracted,
    }


def _save_model(at: Path, plan: TrainPlan, ended: TrainEnded, more: dict[str, Any]) -> None:
    plan.save(at / MODEL, ended.model, {**_about(plan, ended), **more})


def _make_report(plan: TrainPlan, ended: TrainEnded, results: Results, signals: Signals) -> dict[str, Any]:
    """Compute the errors, and write report, pictures, and the model with its errors."""
    model, names, at = ended.model, named_results(plan), results.at
    report: dict[str, Any] = {"step": ended.model_step, "steps": int(ended.state.step_count)}
    report |= {"loss": list(plan.loss.names), "subtracted": plan.subtracted}
    own = plan.validation is None
    report["train"], points = compare(model, plan.data, names, keep=own)
    if plan.validation is not None:
        report["validation"], points = compare(model, plan.validation, names, keep=True)
    with signals.files, after_the_run():
        _save_model(
            at, plan, ended, {"errors": {k: report[k] for k in ("train", "validation") if k in report}}
        )
        with whole_file(at / LOSSES) as part:
            best = ended.model_step if plan.settings.keeps_best else None
            loss_picture(part, describe_training(plan), read_log(at / LOG), read_log(at / VALIDATIONS), best)
        with whole_file(at / PARITY) as part:
            which, errors = ("training", report["train"]) if own else ("validation", report["validation"])
            parity_picture(part, f"On the structures for {which}", points, errors)
        write_report(at, report)
    return report


# -- showing it ----------------------------------------------------------------------------------------


def _show(job: TrainJob) -> int:
    if job.settings is None:
        return _show_folder(Path(job.options.settings))
    return _show_folder(Path(job.settings.run.out))


def _show_folder(out: Path) -> int:
    """The report of a folder; of a training that is not finished, its last validation.

    Raises:
        UsageError: if there is none.
    """
    if not out.is_dir():
        raise UsageError(f"{out} does not exist.")
    repaired(out)
    record = read_train_record(out)
    if record is None:
        raise UsageError(f"{out} holds no training: there is no {SETTINGS} in it.")
    report = read_report(out) if record.complete else None
    if report is not None:
        _print_report(out, report)
        print_rows([("to use it", f"--model trained:{out / MODEL}")])
        return OK
    rows: list[tuple[str, Any]] = [("training", "is not complete: the same command goes on")]
    for name, path in (("last step", out / LOG), ("validation", out / VALIDATIONS)):
        try:
            log = read_log(path)
        except ValueError:
            log = None
        if log is not None:
            rows.append((name, ", ".join(f"{key} {values[-1]:.4g}" for key, values in log.items())))
    print_rows(rows)
    return OK


def _print_report(out: Path, report: dict[str, Any]) -> None:
    print()
    print(f"  {'model':20}{out / MODEL}, of step {report['step']} of {report['steps']}")
    print("\n".join(table(report)), flush=True)
    if report.get("subtracted"):
        print(f"  its energies are without those of the elements: {energies_text(report['subtracted'])}")
