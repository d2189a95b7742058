"""Checkpoints of one of several processes, as a file each, written in the background.

The library that writes those of one process coordinates all processes of a program with each other. Here each
process has checkpoints of its own, at steps of its own.
"""

import base64
import contextlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np


#: The arrays in the content of the file.
_ARRAYS = "arrays"


class CheckpointFiles:
    """Writes folders with a number, each complete or not there.

    Args:
        folder: of all of them. file: the file in each. keep: number of folders that are kept, the newest.
        unfinished: what is added to the name of a folder while it is written.
    """

    def __init__(self, folder: Path, file: str, keep: int, unfinished: str):
        self.folder, self.file, self.keep, self.unfinished = folder, file, keep, unfinished
        self._thread = ThreadPoolExecutor(1, "alchemi-jax checkpoints")
        self._writing: Future | None = None

    def save(self, number: int, arrays: dict[str, np.ndarray], content: dict[str, Any]) -> None:
        """Begin to write a checkpoint. The arrays are copied before this returns."""
        coded = {name: as_text(x) for name, x in arrays.items()}
        self._writing = self._thread.submit(self._write, number, content | {_ARRAYS: coded})

    def _write(self, number: int, content: dict[str, Any]) -> None:
        part = self.folder / f"{number}{self.unfinished}"
        path = part / self.file
        path.parent.mkdir(parents=True)
        with path.open("w") as file:
            file.write(json.dumps(content))
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, self.folder / str(number))
        numbers = sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdecimal())
        for old in numbers[: -self.keep]:
            # Under another name first, so that what is left of it is not taken for a checkpoint.
            gone = self.folder / f"{old}{self.unfinished}-old"
            os.rename(self.folder / str(old), gone)
            with contextlib.suppress(OSError):
                shutil.rmtree(gone)

    def wait_until_finished(self) -> None:
        """Wait for what is being written.

        Raises:
            OSError: if it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


def read_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and content of a file. Errors of any type if it is damaged."""
    content = json.loads(path.read_text())
    return {name: from_text(x) for name, x in content.pop(_ARRAYS).items()}, content


def as_text(x: Any) -> Any:
    """An array as JSON has it: dtype, shape, bytes."""
    x = np.asarray(x)
    # Types that numpy does not have itself, such as bfloat16, are known by their name alone.
    dtype = x.dtype.str if np.dtype(x.dtype.str) == x.dtype else x.dtype.name
    return dtype, x.shape, base64.b64encode(x.tobytes()).decode()


def from_text(coded: Any) -> np.ndarray:
    """The array of `as_text`."""
    dtype, shape, data = coded
    return np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape)


def this_process() -> Any:
    """Options of orbax with which process 0 saves a state by itself, also where there are others."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    rank = jax.process_index()
    return ocp.options.MultiprocessingOptions(rank, {rank}, f"process-{rank}")


__all__ = ["CheckpointFiles", "as_text", "from_text", "read_file", "this_process"]
