"""The beginning of a command that goes on with its results: they are compared with what is asked for, before
anything is written."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from alchemi_jax.cli.inputs import INPUTS, write_inputs
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.record import SETTINGS, AnyRecord
from alchemi_jax.cli.results import Results
from alchemi_jax.io.parts import parts_there


R = TypeVar("R", bound=AnyRecord)


@dataclasses.dataclass(frozen=True)
class Kind(Generic[R]):
    """How the records of some commands are read, written and compared.

    Attributes:
        read: the record of a folder, None if there is none. write: one into a folder.
        difference: why a command may not go on with an earlier record, the end of a sentence; None if it may.
        can_go_on: whether a folder with a record has what is needed for it.
        other: what to give instead, for messages.
    """

    read: Callable[[Path], R | None]
    write: Callable[[Path, R], None]
    difference: Callable[[R, R], str | None]
    can_go_on: Callable[[Path, R], bool]
    other: str = "another out"

    def check_same(self, out: Path, found: R, wanted: R) -> None:
        """Check that a command may go on with what an earlier one left.

        Raises:
            UsageError: naming the settings, files or structures that differ.
        """
        why = self.difference(found, wanted)
        if why is not None:
            raise UsageError(f"{out} {why}: give {self.other}, or --overwrite.")

    def same(self, at: Path, wanted: R) -> R | None:
        """The record of a folder, if it is of the same structures and settings."""
        try:
            found = self.read(at)
        except UsageError:
            return None
        if found is None or found.structures is None or self.difference(found, wanted) is not None:
            return None
        return found

    def check_whole(self, at: Path, names: Iterable[str]) -> None:
        """Check that what is complete has all of its results.

        Raises:
            UsageError: naming the first that is missing.
        """
        for name in names:
            parts = parts_there(at / name) or [at / name]
            missing = [part for part in parts if not _is_whole(part)]
            if missing:
                raise UsageError(
                    f"{missing[0]} is missing, and the run in {at} was complete: put it back as the run left "
                    f"it, or give {self.other}, or --overwrite to begin again."
                )

    def compare(
        self, results: Results, goes_on: bool, overwrite: bool, given: R, inputs: Callable[[], Iterable[Any]]
    ) -> R | None:
        """Compare what is known before the structures are read. The record that was found, if one counts.

        Args:
            given: the settings that are asked for. inputs: files that must not be replaced.

        Raises:
            UsageError: if the folder holds results of something else, or cannot be used.
        """
        if not goes_on or overwrite:
            results.check(overwrite, list(inputs()))
            return None
        found = self.read(results.out)
        if found is None:
            first, why = results.out / results.existing()[0], ""
            if (results.out / INPUTS).exists():
                why = f", and {SETTINGS} beside it, which says what it is of, is missing"
            raise UsageError(f"{first} exists{why}: give {self.other}, or --overwrite.")
        self.check_same(results.out, found, given)
        return found


class Beginning(Generic[R]):
    """One command, from a first look at its folder until it may begin or go on.

    Args:
        overwrite: whether it may replace what is there.
    """

    def __init__(self, results: Results, kind: Kind[R], overwrite: bool):
        self.results, self.kind, self.overwrite = results, kind, overwrite
        swapped = results.hold()
        self._goes_on = bool(results.existing()) and (swapped or not overwrite)
        self._found: R | None = None

    def compare(self, given: R, inputs: Callable[[], Iterable[Any]]) -> None:
        """See `Kind.compare`."""
        self._found = self.kind.compare(self.results, self._goes_on, self.overwrite, given, inputs)

    def find(self, wanted: R) -> R | None:
        """The record with whose results the command goes on. None: it begins, and its record is written.

        Args:
            wanted: what is asked for, with the structures that were read.

        Raises:
            UsageError: if the folder holds results of something else.
        """
        results, kind, found, goes_on = self.results, self.kind, self._found, self._goes_on
        if goes_on and self.overwrite:
            # The new results are in their place since this call repaired it: they need not be made again.
            found = kind.same(results.out, wanted)
            goes_on = found is not None and found.complete
        elif found is not None:
            kind.check_same(results.out, found, wanted)
        if not goes_on:
            results.begin()
            if self.overwrite:
                found = kind.same(results.at, wanted)
                goes_on = found is not None and kind.can_go_on(results.at, found)
                if not goes_on:
                    results.empty()
        if goes_on and found is not None:
            return found
        write_inputs(results.at, wanted.structures or [])
        kind.write(results.at, wanted)
        return None


def _is_whole(path: Path) -> bool:
    return (path / "zarr.json" if path.suffix == ".zarr" else path).exists()


def has_checkpoints(folder: Path) -> bool:
    """Whether there is a checkpoint, or what a run began with; other files alone are of no use."""
    return folder.is_dir() and any(p.name == "begin.json" or p.name.isdecimal() for p in folder.iterdir())
