"""Which systems of a run on a cluster are finished, kept in checkpoints of the place where it was called.

A checkpoint has no states: systems in flight begin again. Sinks and logs are cut back to it as in any run, so
that what is there and what is done agree.
"""

import time
from typing import Any

import numpy as np

from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.resume import budgets_of
from alchemi_jax.dynamics.saved import AnotherRun, join_key, join_tree, key_parts, same_key
from alchemi_jax.dynamics.saver import Saver
from alchemi_jax.dynamics.stream import Stream


#: Seconds between checkpoints while systems come back.
_EVERY = 2.0


class Progress:
    """The systems that are finished.

    Args:
        engine, key: of the run. saver: None: nothing is kept. saved: what `look` gave, of a run that goes on.
    """

    def __init__(self, engine: Engine, key: Any, saver: Saver | None, saved: dict[str, Any] | None):
        self.engine, self.key, self.saver, self.saved = engine, key, saver, saved
        self.done: list[np.ndarray] = [] if saved is None else [np.asarray(saved["done"], np.int32)]
        self.finished = sum(map(len, self.done))
        self._known = {i for ids in self.done for i in ids.tolist()}
        self._at = time.monotonic()
        self._is_saved = True

    @property
    def stream(self) -> dict[str, Any] | None:
        """What the stream goes on from."""
        return None if self.saved is None else self.saved["stream"]

    def check_new(self, ids: np.ndarray, expected: np.ndarray) -> None:
        """Check that systems that come back are those of their task, and come for the first time.

        Raises:
            RuntimeError: if not; nothing of them is written.
        """
        again = self._known & set(ids.tolist())
        if again or sorted(ids.tolist()) != sorted(expected.tolist()):
            raise RuntimeError(
                f"a task of the cluster gave the systems {ids.tolist()[:10]}, expected were "
                f"{expected.tolist()[:10]}, each once: nothing of them was written."
            )

    def add(self, ids: np.ndarray) -> None:
        """These systems are finished, and with the sink."""
        self.done.append(np.array(ids, np.int32))
        self._known |= set(ids.tolist())
        self.finished += len(ids)
        self._is_saved = False

    def should_stop(self) -> bool:
        """Whether the run is to be saved and to end."""
        return self.saver is not None and self.saver.should_stop()

    def save(self, stream: Stream, ended: bool = False, now: bool = False) -> None:
        """Save the run, if it is time to or `now`; `ended`: all systems are finished."""
        due = now or ended or time.monotonic() - self._at >= _EVERY
        if self.saver is None or not due or (self._is_saved and not ended):
            return
        self.done = [np.concatenate([np.zeros(0, np.int32), *self.done])]
        left_out = np.array([i for i, _, _ in stream.sampler.skipped], np.int32)
        rest = {
            "done": self.done[0],
            "stream": stream.saved(np.concatenate([self.done[0], left_out])),
            "key": key_parts(self.key),
            "budgets": budgets_of(self.engine),
        }
        self.saver.save([], rest, ended, self.finished)
        self._at, self._is_saved = time.monotonic(), True


def look(engine: Engine, key: Any, found: Any) -> dict[str, Any]:
    """What a checkpoint has.

    Raises:
        AnotherRun: naming what differs.
    """
    saved = join_tree(found.about["rest"], found.arrays)
    if not same_key(join_key(saved["key"]), key):
        raise AnotherRun(f"{found.path} is of a run with another key: give the same.")
    if saved["budgets"] != budgets_of(engine):
        raise AnotherRun(
            f"{found.path} is of a run with {_text(saved['budgets'])} steps, this one has "
            f"{_text(budgets_of(engine))}: on a cluster finished systems do not go on. Give the same, or "
            "another folder."
        )
    return saved


def _text(budgets: list[Any]) -> str:
    return " + ".join("any number of" if n is None else str(n) for n in budgets[:-1])


__all__ = ["Progress", "look"]
