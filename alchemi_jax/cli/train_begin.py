"""The beginning of `train`: what is in the folder of results, and whether the training goes on with it."""

import dataclasses
from pathlib import Path
from typing import Any

from alchemi_jax.cli.beginning import Beginning, Kind, has_checkpoints
from alchemi_jax.cli.flags import TrainJob
from alchemi_jax.cli.folder import CHECKPOINTS, MODEL
from alchemi_jax.cli.models import canonical, model_files
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.results import Results
from alchemi_jax.cli.train_data import files_of
from alchemi_jax.cli.train_plan import LOG, VALIDATIONS, TrainPlan, prepare_training
from alchemi_jax.cli.train_record import TrainRecord, difference, is_longer, read_train_record, write_record
from alchemi_jax.cli.train_report import REPORT
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
    beginning = Beginning(results, TRAINING, job.options.overwrite)
    beginning.compare(TrainRecord(_canonical(job)), lambda: _inputs(job))
    plan = prepare_training(job)
    wanted = TrainRecord(plan.settings, plan.hashes, plan.sets.structures)
    found = beginning.find(wanted)
    if found is None:
        return TrainBegun(plan, wanted, False, False)
    complete = found.complete and not is_longer(found, wanted)
    if complete:
        TRAINING.check_whole(results.at, (f"{MODEL}/model.json", LOG, REPORT))
    else:
        if not _can_go_on(results.at, found):
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
    out, exists = results.out, bool(results.existing())
    given = TrainRecord(_canonical(job))
    found = TRAINING.compare(results, exists, job.options.overwrite, given, lambda: _inputs(job))
    plan = prepare_training(job, only_check=True)
    if found is None:
        return plan, f"begins in {out}" + (", and replaces what is there at the end" if exists else "")
    wanted = TrainRecord(plan.settings, plan.hashes, plan.sets.structures)
    TRAINING.check_same(out, found, wanted)
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


def _inputs(job: TrainJob) -> list[Any]:
    """Files that are read, which must not be replaced."""
    settings = _canonical(job)
    kind = settings.model.kind
    return [*files_of(settings.data), *model_files(None if kind == INVARIANT else kind)]


def _can_go_on(at: Path, found: TrainRecord) -> bool:
    """Whether there are checkpoints, or nothing that would need them."""
    results = (LOG, VALIDATIONS, MODEL)
    return has_checkpoints(at / CHECKPOINTS) or not any((at / name).exists() for name in results)


TRAINING = Kind(read_train_record, write_record, difference, _can_go_on, "another run.out")
