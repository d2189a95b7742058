"""The beginning of `relax`, `md` and `run`: what is in the folder of results, and whether the run goes on
with it.

Before the first step the folder has `inputs.json` and then `settings.json`. Results are compared with them,
and only those of the same structures, settings and model files are gone on with.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from alchemi_jax.cli.beginning import Beginning, Kind, has_checkpoints
from alchemi_jax.cli.finished import FINISHED, is_done, is_readable, read_finished
from alchemi_jax.cli.flags import Job
from alchemi_jax.cli.folder import CHECKPOINTS, is_ours
from alchemi_jax.cli.inputs import INPUTS, structures_of
from alchemi_jax.cli.models import canonical, model_files
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.record import Record, difference, extends, read_record, write_settings
from alchemi_jax.cli.results import Results
from alchemi_jax.cli.stream import Prepared, prepare
from alchemi_jax.io.parts import check_parts, part_path
from alchemi_jax.shared import world


#: What each process writes.
_DATA = (FINISHED, "trajectory.zarr", "log.csv")


@dataclasses.dataclass
class Begun:
    """A run that may take its first step, or that is complete.

    Attributes:
        plan: what is run.
        record: what is written of it in the folder.
        complete: nothing is left to do; results are only shown.
        goes_on: an earlier call has begun it. `extends`: and had fewer steps to do.
    """

    plan: Prepared
    record: Record
    complete: bool
    goes_on: bool
    extends: bool

    def writes(self, path: Path) -> bool:
        """Whether a file that is made of the others is to be written: of a complete run, if it is missing, or
        a store that lacks something.

        Raises:
            UsageError: if it is a store that cannot be read, and not known to be ours.
        """
        if not self.complete or not path.exists():
            return True
        if path.suffix != ".zarr" or is_readable(path):
            return False
        if not is_ours(path):
            raise UsageError(
                f"{path} cannot be read, and is not known as a store of this program: move it, and the same "
                "command makes it again"
            )
        return True

    def finish(self, results: Results) -> None:
        """All results are written: say so, and put them in the place of older ones."""
        if not self.complete:
            write_settings(results.at, dataclasses.replace(self.record, complete=True))
        results.finish()


def begin(job: Job, results: Results, command: str, kept: Sequence[str]) -> Begun:
    """Read and check everything, and write down what is run.

    Args:
        kept: names of the results that a complete run has, and which are not made of others.

    Raises:
        UsageError: before anything is written, if something about the input is wrong, or the folder holds
            results of another run, or some of them are missing.
    """
    settings = job.settings
    inputs = [*settings.files, *model_files(settings.model)]
    beginning = Beginning(results, RUN, job.options.overwrite)
    given = settings.model_copy(update={"model": canonical(settings.model)})
    beginning.compare(Record(given, command=command), lambda: inputs)
    plan = prepare(job)
    wanted = Record(plan.settings, plan.hashes, plan.chosen, command, structures_of(plan.sources))
    found = beginning.find(wanted)
    if found is None:
        return Begun(plan, wanted, False, False, False)
    more = extends(found, wanted)
    complete = not more and (found.complete or _all_done(results.at, found, plan))
    record = dataclasses.replace(wanted, chosen=found.chosen, complete=False)
    if complete and found.structures is None:
        print(
            f"{results.at / INPUTS} is missing, as in folders of earlier versions, and with it the hashes of "
            "the structures: they are not compared.",
            file=sys.stderr,
        )
    if complete:
        RUN.check_whole(results.at, kept)
    else:
        _check_goes_on(results, found)
        results.probe()
        if more or found.complete or found.settings != record.settings:
            write_settings(results.at, record)
    return Begun(plan, record, complete, True, more)


def _all_done(at: Path, found: Record, plan: Prepared) -> bool:
    """Whether an earlier version, which did not say so, finished all structures."""
    if found.structures is not None:
        return False
    host = read_finished(at)
    return host is not None and len(host) == len(plan.sources) and bool(is_done(host, plan.settings).all())


def _can_go_on(at: Path, found: Record) -> bool:
    try:
        _check_processes(at)
    except UsageError:
        return False
    size = world().size
    any_begun = False
    for rank in range(size):
        # Each process goes on from its own checkpoints.
        names = [at / name for name in (CHECKPOINTS, *_DATA)]
        place = names if size == 1 else [part_path(name, rank, size) for name in names]
        begun = has_checkpoints(place[0])
        if not begun and (any(p.exists() for p in place[1:]) or (at / "relaxed.zarr").exists()):
            return False
        any_begun = any_begun or begun
    return found.structures is not None or not any_begun


def _check_processes(at: Path) -> None:
    """Check that results were begun by as many processes as there are now.

    Raises:
        UsageError: saying how many there were.
    """
    try:
        for name in (CHECKPOINTS, *_DATA):
            check_parts(at / name)
    except ValueError as e:
        raise UsageError(str(e).replace("another path", "another out, or --overwrite")) from None


RUN = Kind(read_record, write_settings, difference, _can_go_on)


def _check_goes_on(results: Results, found: Record) -> None:
    """Whether there is what to go on from, or nothing at all.

    Raises:
        UsageError: if there are results, but no checkpoints.
    """
    _check_processes(results.at)
    if _can_go_on(results.at, found):
        return
    folder = results.at / CHECKPOINTS
    why = f"{folder} is missing or empty, so that its structures cannot go on"
    if found.structures is None and has_checkpoints(folder):
        why = f"{results.at / INPUTS} is missing, so that nobody knows whether the structures are the same"
    elif found.structures is None:
        why = f"{results.out} was begun by an earlier version, without checkpoints to go on from"
    raise UsageError(
        f"{why}: give another out, or --overwrite to begin again; what it holds is kept as it is."
    )
