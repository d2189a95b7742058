"""The threads of a run over several devices, one unchanged driver in each, and the thread of the caller.

Each driver asks its `PartSaver` between two segments: there it learns that the run ends, because another
device has met an error or the caller stops, and there it waits where the whole run is to be saved. Hooks of
the host are called in the thread of the caller, so that Ctrl-C and what they draw are where users expect
them.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from alchemi_jax.dynamics.interrupt import Interrupted
from alchemi_jax.dynamics.saver import Saver
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.errors import public_call
from alchemi_jax.shared import others_ended


#: Seconds after which the caller looks up though nobody called: `should_stop` is asked so often.
_LOOK = 0.25


class Stopped(Interrupted):
    """The part of a device ends early, because another part failed or the caller stops."""


class Deposit:
    """What a part has when the run is saved: states, the rest, and whether it has ended."""

    def __init__(self, states: list[DynamicsState], rest: dict[str, Any], ended: bool):
        self.states, self.rest, self.ended = states, rest, ended


class _Posted:
    """A function that a part waits for."""

    def __init__(self, function: Callable[[], Any]):
        self.function, self.done = function, False
        self.result: Any = None
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self.result = self.function()
        except BaseException as e:
            self.error = e
        self.done = True


class Inbox(Protocol):
    """What the caller's thread does between looks: call hooks for which all parts have come so far."""

    def next_call(self) -> Callable[[], None] | None:
        """The next thing to do, taken out; None: nothing. With the lock held."""
        ...

    def mark(self, part: int, step: int) -> None:
        """The part has come to a step. With the lock held."""
        ...

    def end(self, part: int) -> None:
        """The part has ended. With the lock held."""
        ...


class Team:
    """Runs one function a device, each in a thread.

    Args:
        devices: one a part; None in it: the device that JAX uses anyway.
        saver: of the whole run; None: it is not saved.
        together: whether all parts are saved after the same number of steps.
    """

    def __init__(self, devices: Sequence[Any], saver: Saver | None = None, together: bool = True):
        self.devices, self.saver, self.together = list(devices), saver, together
        self.changed = threading.Condition(threading.RLock())
        self.running = set(range(len(self.devices)))
        self.stopping = False
        #: (part, exception), in the order in which they came.
        self.errors: list[tuple[int, BaseException]] = []
        self.inbox: Inbox | None = None
        #: Functions that parts want called in the caller's thread.
        self._posted = deque[_Posted]()
        self._serves = True
        #: Writes a checkpoint of what all parts have deposited. Called in the caller's thread.
        self.write: Callable[[list[Deposit]], None] = lambda deposits: None
        self.deposits: list[Deposit | None] = [None] * len(self.devices)
        #: Steps of each part, and up to which its present segment may go.
        self.steps = [0] * len(self.devices)
        self._promised = [0] * len(self.devices)
        #: Where the last segment of each part began and ended.
        self._segments = [(0, 0)] * len(self.devices)
        #: The run is to be saved: when all have come to that step, or wherever they are.
        self._asked, self._target = False, 0
        self._rounds, self._waiting = 0, set[int]()
        self._stops_after = False
        self._heard = False

    # -- in the caller's thread --------------------------------------------------------------------

    def run(self, works: Sequence[Callable[["PartSaver"], Any]]) -> list[Any]:
        """What the functions return, in order.

        Raises:
            What the first of them raised, after all of them have ended; or what a hook raised.
        """
        settings = _Settings()
        results: list[Any] = [None] * len(works)

        def work(part: int) -> None:
            try:
                with settings.on(self.devices[part]):
                    results[part] = works[part](PartSaver(self, part))
            except BaseException as e:
                with self.changed:
                    if not isinstance(e, Stopped):
                        self.errors.append((part, e))
                        self.stopping = True
            finally:
                with self.changed:
                    self.running.discard(part)
                    if self.inbox is not None:
                        self.inbox.end(part)
                    self.changed.notify_all()

        threads = [
            threading.Thread(target=work, args=(k,), name=f"alchemi-jax part {k}") for k in range(len(works))
        ]
        for thread in threads:
            thread.start()
        try:
            self._serve_until_interrupted()
        except BaseException:
            self.stop()
            # Parts still write what is finished.
            self._serve()
            raise
        finally:
            self._end_serving()
            for thread in threads:
                thread.join()
        if self.errors:
            raise self._first_error()
        return results

    def _serve_until_interrupted(self) -> None:
        try:
            self._serve()
        except KeyboardInterrupt:
            # All parts first come to the same step. A second Ctrl-C ends them where they are.
            with self.changed:
                self._stops_after = True
                self._ask()
                self.changed.notify_all()
            self._serve()
            raise

    def _first_error(self) -> BaseException:
        part, error = self.errors[0]
        device = self.devices[part]
        if device is not None and len(set(self.devices)) > 1:
            error.add_note(f"raised on device {device}, one of {len(self.devices)}")
        return error

    def _end_serving(self) -> None:
        with self.changed:
            self.stopping = self.stopping or bool(self.running)
            self._serves = False
            self.changed.notify_all()

    def _serve(self) -> None:
        """Call what is due until all parts have ended."""
        while True:
            with self.changed:
                call = self._posted.popleft() if self._posted else None
                if call is None and not self.stopping and self.inbox is not None:
                    call = self.inbox.next_call()
                if call is None and not self.stopping and self._all_wait():
                    call = self._save
                if call is None:
                    if not self.running:
                        return
                    self.changed.wait(_LOOK)
            if call is not None:
                call()
                with self.changed:
                    self.changed.notify_all()
            elif self._heard and self._is_told():
                with self.changed:
                    self._stops_after = True
                    self._ask()
                    self.changed.notify_all()

    def _is_told(self) -> bool:
        # Only if a part is at work: while all of them compile, nobody could stop.
        self._heard = False
        if self._stops_after:
            return False
        return others_ended() if self.saver is None else self.saver.should_stop()

    def _all_wait(self) -> bool:
        return self._asked and self._waiting >= self.running and bool(self._waiting)

    def _save(self) -> None:
        deposits = [d for d in self.deposits if d is not None]
        self.write(deposits)
        with self.changed:
            self._asked, self._rounds = False, self._rounds + 1
            self._waiting.clear()
            if self._stops_after:
                self.stopping = True

    def stop(self) -> None:
        """Let all parts end between two segments."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()

    @property
    def told_to_stop(self) -> bool:
        """Whether the function of the user's that is asked for it has ended the run."""
        return self._stops_after

    # -- in the threads of the parts ---------------------------------------------------------------

    def in_caller(self, function: Callable[[], Any]) -> Any:
        """What a function returns, or raises, that is called in the caller's thread."""
        posted = _Posted(function)
        with self.changed:
            self._posted.append(posted)
            self.changed.notify_all()
            while not posted.done:
                if not self._serves:
                    raise Stopped("the caller has ended")
                self.changed.wait()
        if posted.error is not None:
            raise posted.error
        return posted.result

    def check(self) -> None:
        """Raises Stopped if the part is to end."""
        if self.stopping:
            raise Stopped("another part of the run has ended")

    def wait_while(self, condition: Callable[[], bool]) -> None:
        """Wait for the caller's thread. With the lock held."""
        while condition() and not self.stopping:
            self.changed.wait()
        self.check()

    def arrive(self, part: int, step: int) -> bool:
        """The part is between two segments. Whether it is to deposit what it has."""
        with self.changed:
            self.steps[part], self._heard = step, True
            if self.inbox is not None:
                self.inbox.mark(part, step)
                self.changed.notify_all()
            saved = self.saver is not None and not self._asked and step == max(self.steps)
            if saved and self.saver is not None and self.saver.is_due(step):
                self._ask()
            return self._asked and (not self.together or step >= self._target)

    def _ask(self) -> None:
        # No part can be beyond the step up to which its segment goes.
        if not self._asked:
            self._asked, self._target = True, max((self._promised[k] for k in self.running), default=0)

    def bound(self, part: int, step: int) -> int | None:
        """Up to which step the next segment of a part may go; None: as it likes."""
        if self.saver is None and not self.together:
            return None
        with self.changed:
            before, now = self._segments[part]
            if step > now:
                self._segments[part] = before, now = now, step
            # Short enough that others need not wait long for it, and no shorter than the driver's own.
            most = step + 2 * max(now - before, 64)
            due = None if self.saver is None else self.saver.next_step(step)
            if due is not None:
                most = min(most, due)
            if self._asked and self.together:
                most = min(most, self._target) if step < self._target else most
            self._promised[part] = most
            return most

    def deposit(self, part: int, given: Deposit) -> None:
        """Give what a part has, and wait until it is saved unless the part has ended."""
        with self.changed:
            self.deposits[part] = given
            if given.ended:
                return
            self._waiting.add(part)
            rounds = self._rounds
            self.changed.notify_all()
            self.wait_while(lambda: self._rounds == rounds)


class PartSaver:
    """What the driver of a part asks between two segments; it has the methods of `Saver` that a driver
    calls."""

    def __init__(self, team: Team, part: int):
        self.team, self.part = team, part

    @property
    def out_of_steps(self) -> Path | None:
        """See `Saver`; each part has files of its own."""
        saver = self.team.saver
        if saver is None or self.part == 0:
            return None if saver is None else saver.out_of_steps
        return saver.out_of_steps.with_name(f"{saver.out_of_steps.name}-{self.part}")

    def should_stop(self) -> bool:
        """Raises Stopped if the part is to end; the run itself is asked in the thread of the caller."""
        self.team.check()
        return False

    def is_due(self, step: int) -> bool:
        """Whether the run is to be saved now; says that the part has come to this step."""
        return self.team.arrive(self.part, step)

    def next_step(self, step: int) -> int | None:
        """The next number of steps at which the part is to be asked."""
        return self.team.bound(self.part, step)

    def save(self, states: list[DynamicsState], rest: dict[str, Any], ended: bool = False) -> None:
        """Give what the part has; returns when all parts have, and it is saved."""
        self.team.deposit(self.part, Deposit(states, rest, ended))


class _Settings:
    """Settings of JAX that hold in the thread that made them alone."""

    def __init__(self) -> None:
        config: Any = jax.config
        self.x64 = bool(config.jax_enable_x64)
        self.precision = config.jax_default_matmul_precision

    @contextlib.contextmanager
    def on(self, device: Any) -> Iterator[None]:
        """The same settings, and another default device."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.enable_x64(self.x64))
            stack.enter_context(jax.default_matmul_precision(self.precision))
            if device is not None:
                stack.enter_context(jax.default_device(device))
            stack.enter_context(public_call())
            yield


__all__ = ["Deposit", "Inbox", "PartSaver", "Stopped", "Team"]
