"""The beginning of `train`: what is in the folder of results, and whether the training goes on with it."""

import dataclasses
from pathlib import Path

from alchemi_jax.cli.flags import TrainJob
from alchemi_jax.cli.folder import CHECKPOINTS
from alchemi_jax.cli.inputs import write_inputs
from alchemi_jax.cli.models import canonical, model_files
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.results import Results
from alchemi_jax.cli.train_data import files_of
from alchemi_jax.cli.train_plan import LOG, TrainPlan, prepare_training
from alchemi_jax.cli.train_record import (
    TrainRecord,
    check_same,
    difference,
    is_longer,
    read_train_record,
    write_record,
)
from alchemi_jax.cli.train_settings import INVARIANT, Training


@dataclasses.dataclass
class TrainBegun:
    """A training that may take its first step, or that is complete.

    Attributes:
        plan: what is trained.
        record: what is written of it in the folder.
        complete: nothing is left to do. `goes_on`: an earlier call has begun it.
    """

    plan: TrainPlan
    record: TrainRecord
    complete: bool
    goes_on: bool

    def finish(self, results: Results) -> None:
        """All results are written: say so, and put them in the place of older ones."""
        if not self.complete:
            write_record(results.at, dataclasses.replace(self.record, complete=True))
        results.finish()


def begin_training(job: TrainJob, results: Results) -> TrainBegun:
    """Read and check everything, and write down what is trained.

    Raises:
        UsageError: before anything is written, if something about the input is wrong, or the folder holds
            results of something else.
    """
    settings, overwrite = _canonical(job), job.options.overwrite
    swapped = results.hold()
    goes_on, found = bool(results.existing()) and (swapped or not overwrite), None
    if goes_on and not overwrite:
        # Before the structures are read.
        found = _record(results)
        check_same(results.out, found, TrainRecord(settings))
    else:
        _check_folder(job, results, overwrite)
    plan = prepare_training(job)
    wanted = TrainRecord(plan.settings, plan.hashes, plan.sets.structures)
    if goes_on and overwrite:
        # The new results are in their place since this call repaired it.
        found = _same_record(results.out, wanted)
        goes_on = found is not None and found.complete
    elif found is not None:
        check_same(results.out, found, wanted)
    if not goes_on:
        results.begin()
        if overwrite:
            found = _same_record(results.at, wanted)
            goes_on = found is not None and _can_go_on(results.at)
            if not goes_on:
                results.empty()
    if not goes_on or found is None:
        write_inputs(results.at, wanted.structures or [])
        write_record(results.at, wanted)
        return TrainBegun(plan, wanted, False, False)
    complete = found.complete and not is_longer(found, wanted)
    if not complete:
        if not _can_go_on(results.at):
            raise UsageError(
                f"{results.at / CHECKPOINTS} is missing or empty, so that the training cannot go on: give "
                "another run.out, or --overwrite to begin again; what it holds is kept as it is."
            )
        results.probe()
        if found != wanted:
            write_record(results.at, wanted)
    return TrainBegun(plan, wanted, complete, True)


def look_at_training(job: TrainJob, results: Results) -> tuple[TrainPlan, str]:
    """For `--check`: read and check everything, write nothing; what the command would do with the folder.

    Raises:
        UsageError: as `begin_training`.
    """
    out, overwrite = results.out, job.options.overwrite
    exists = bool(results.existing())
    found = None
    if exists and not overwrite:
        found = _record(results)
        check_same(out, found, TrainRecord(_canonical(job)))
    else:
        _check_folder(job, results, overwrite)
    plan = prepare_training(job, only_check=True)
    if found is None:
        return plan, f"begins in {out}" + (", and replaces what is there at the end" if exists else "")
    wanted = TrainRecord(plan.settings, plan.hashes, plan.sets.structures)
    check_same(out, found, wanted)
    if found.complete and not is_longer(found, wanted):
        return plan, f"{out} is complete"
    return plan, f"goes on in {out}"


def _canonical(job: TrainJob) -> Training:
    settings = job.settings
    assert settings is not None, "parse reads the file"
    if settings.model.kind == INVARIANT:
        return settings
    model = settings.model.model_copy(update={"kind": canonical(settings.model.kind)})
    return settings.model_copy(update={"model": model})


def _check_folder(job: TrainJob, results: Results, overwrite: bool) -> None:
    settings = _canonical(job)
    kind = settings.model.kind
    inputs = [*files_of(settings.data), *model_files(None if kind == INVARIANT else kind)]
    results.check(overwrite, inputs)


def _record(results: Results) -> TrainRecord:
    found = read_train_record(results.out)
    if found is None:
        raise UsageError(
            f"{results.out / results.existing()[0]} exists: give another run.out, or --overwrite."
        )
    return found


def _same_record(at: Path, wanted: TrainRecord) -> TrainRecord | None:
    """What was begun in a folder, if it is the same training."""
    try:
        found = read_train_record(at)
    except UsageError:
        return None
    return None if found is None or difference(found, wanted) is not None else found


def _can_go_on(at: Path) -> bool:
    """Whether there are checkpoints, or nothing that would need them."""
    if (at / CHECKPOINTS).is_dir() and any((at / CHECKPOINTS).iterdir()):
        return True
    return not any((at / name).exists() for name in (LOG, "validation.csv", "model"))
