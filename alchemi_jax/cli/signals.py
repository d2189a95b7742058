"""Ctrl-C, SIGTERM and `--max-seconds`: the run is saved, one sentence says so, and the process leaves.

An exception that a signal handler raises while XLA compiles ends in a crash of the compiler, and no Python
code of the main thread runs while it is inside compiled code. So the handler only notes the signal. The
driver asks between compiled segments whether to save and stop (`should_stop`). A thread, which the signal
wakes through a pipe, ends the process where nobody asks: while modules are imported, structures read,
programs compiled. What is on disk is valid at any moment, so that this loses no more than the time since the
last checkpoint.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from alchemi_jax.cli.outcome import TIME_IS_UP


#: Seconds that a run has to come to the end of its segment. Queue systems kill about 30 s after SIGTERM.
NOTICE = 25.0
#: Seconds that are waited for a file that is being written.
_WRITING = 60.0
#: A signal that comes again within so many seconds is the same one: `timeout` sends it to the process and to
#: its group.
_SAME = 0.2
#: Seconds before the end of the time of `--max-seconds` at which a run is saved: a share of it within
#: bounds, and at the end the process leaves in any case.
_SHARE, _LEAST, _MOST, _LAST = 0.05, 2.0, 30.0, 0.3
_HANDLED = ("SIGINT", "SIGTERM", "SIGHUP")


class Signals:
    """The signals of a process, its time, and what is to be done before it leaves.

    Attributes:
        number: of the first signal that came, or None.
        command: its name, for messages.
        files: held while results are written, so that the process does not leave in between.
        describe: gives the sentence that says what is left on disk.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.command = ""
        self.files = threading.RLock()
        self.describe: Callable[[], str] = lambda: "nothing had been computed"
        self._closers: list[Callable[[], Any]] = []
        self._is_asked = False
        self._noticed = threading.Event()
        self._came = 0
        self._first = 0.0
        self._is_installed = False
        #: On the clock of `time.monotonic`: when the run is to be saved because its time is up.
        self._save_at: float | None = None
        self._asked_at: float | None = None
        self._longest = 0.0
        self.is_out_of_time = False

    def install(self) -> None:
        """Handle the signals of this process. Those that it was told to ignore, as by nohup, stay ignored."""
        self._is_installed = True
        read, write = os.pipe()
        os.set_blocking(write, False)
        for name in _HANDLED:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), daemon=True, name="alchemi-jax signals").start()

    @contextlib.contextmanager
    def limited(self, seconds: float | None) -> Iterator[None]:
        """Around a command that is to leave before this many seconds since the process started.

        Where signals are not handled, because the process is not ours, it is since now, and only
        `should_stop` looks at it.
        """
        over = threading.Event()
        if seconds is not None:
            end = time.monotonic() + seconds - (age_of_process() if self._is_installed else 0.0)
            self._save_at = end - min(max(_SHARE * seconds, _LEAST), _MOST)
            if self._is_installed:
                target, name = self._leave_in_time, "alchemi-jax time"
                threading.Thread(target=target, args=(end - _LAST, over), daemon=True, name=name).start()
        try:
            yield
        finally:
            self._save_at = None
            over.set()

    def _note(self, number: int, frame: Any) -> None:
        self.number = self.number or number

    @property
    def is_over(self) -> bool:
        """Whether a signal came or the time is up."""
        return self.number is not None or self.is_out_of_time

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM, 4 if the time is up."""
        if self.number is None and self.is_out_of_time:
            return TIME_IS_UP
        return 128 + (self.number or signal.SIGINT)

    @property
    def word(self) -> str:
        """What happened, for messages."""
        if self.number is None and self.is_out_of_time:
            return "the time is up"
        return "terminated" if self.number == signal.SIGTERM else "interrupted"

    # -- in the main thread ------------------------------------------------------------------------

    def should_stop(self) -> bool:
        """Asked between compiled segments: whether to save what was reached and to stop."""
        now = time.monotonic()
        if self._asked_at is not None:
            self._longest = max(self._longest, now - self._asked_at)
        self._asked_at, self._is_asked = now, True
        # The next time that it is asked must not be too late.
        if self._save_at is not None and now + self._longest >= self._save_at:
            self.is_out_of_time = True
        if self.is_over:
            self._noticed.set()
        return self.is_over

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Around code that may call `should_stop`; after it nobody does."""
        try:
            yield
        finally:
            self._is_asked = False

    def on_leave(self, close: Callable[[], Any]) -> None:
        """Call a function before the process leaves in the middle of something; the last one comes first."""
        self._closers.append(close)

    # -- in other threads --------------------------------------------------------------------------

    def _watch(self, pipe: int) -> None:
        while True:
            for number in os.read(pipe, 64):
                if number not in [getattr(signal, name, None) for name in _HANDLED]:
                    continue
                self.number = self.number or number
                self._came += 1
                if self._came == 1:
                    self._first = time.monotonic()
                    threading.Thread(target=self._end, daemon=True).start()
                elif number == signal.SIGINT and time.monotonic() - self._first > _SAME:
                    # Files of results are valid at any moment, also one that is being written.
                    self.leave(waits=False)

    def _end(self) -> None:
        until = time.monotonic() + NOTICE
        while self._is_asked and time.monotonic() < until:
            if self._noticed.wait(0.02):
                return
        if not self._noticed.is_set():
            self.leave()

    def _leave_in_time(self, until: float, over: threading.Event) -> None:
        if not over.wait(max(until - time.monotonic(), 0.0)):
            self.is_out_of_time = True
            self.leave(waits=False)

    def leave(self, waits: bool = True) -> None:
        """Close the files, say one sentence, and end the process.

        Args:
            waits: for a file that is being written.
        """
        held = self.files.acquire(timeout=_WRITING if waits else _LAST / 2)
        if held:
            for close in reversed(self._closers):
                with contextlib.suppress(Exception):
                    close()
        with contextlib.suppress(Exception):
            # By the number of the stream: the main thread may hold the lock of `sys.stderr`.
            os.write(2, f"{self.sentence()}\n".encode(errors="replace"))
        os._exit(self.exit_code)

    def sentence(self) -> str:
        """What happened, and what is left on disk."""
        command = f" {self.command}" if self.command else ""
        return f"alchemi-jax{command}: {self.word}: {self.describe()}."


_STARTED = time.monotonic()


def age_of_process() -> float:
    """Seconds since this process was started, imports and all."""
    try:
        with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
            # The name of the program, in brackets, may hold spaces.
            ticks = int(stat.read().rpartition(")")[2].split()[19])
            age = float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        age = 0.0
    since_import = time.monotonic() - _STARTED
    # Where /proc is another machine's, as in some containers, its numbers mean nothing.
    return age if since_import <= age < since_import + 600 else since_import
