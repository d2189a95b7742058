"""SinkOnDisk: what sinks with a path have in common."""

import os
from pathlib import Path

from alchemi_jax.io.parts import own_path
from alchemi_jax.io.sinks.base import Sink, check_mode
from alchemi_jax.parameters import as_path


class SinkOnDisk(Sink):
    """The base of sinks that write to a path.

    Args:
        path: of the whole; with several processes each writes a part of its own beside it.
        mode: "a", "w", "x" or "r".
    """

    def __init__(self, path: str | os.PathLike, mode: str):
        self.path, self.mode = as_path(f"path of {type(self).__name__}")(path), check_mode(self, mode)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def _own(self) -> Path:
        """Where this process writes."""
        return self.path if self.mode == "r" else own_path(self.path)

    def _refuse_mode_r(self) -> None:
        """Raise ValueError if it was opened to read."""
        if self.mode == "r":
            raise ValueError(f"{self._own} was opened to read, mode 'r'.")

    def _refuse_existing(self, exists: bool) -> None:
        """Raise FileExistsError if there is something at the path that mode "x" must not touch."""
        if exists and self.mode == "x":
            raise FileExistsError(f"{self._own} exists: give another path, or mode='w' or 'a'.")


__all__ = ["SinkOnDisk"]
