"""Ctrl-C and SIGTERM: what is finished is on disk, one sentence, and the process leaves by `os._exit`.

An exception that a signal handler raises while XLA compiles ends in a crash of the compiler, and no Python
code of the main thread runs while it is inside compiled code. So the handler only notes the signal. A thread,
which the signal wakes through a pipe, ends the process; where the main thread is between compiled segments it
is given the time to notice the signal by itself (`check`) and to write what it has reached.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


#: Seconds that the main thread has to notice a signal where it looks for one.
NOTICE = 4.0
#: Seconds that are waited for a file that is being written.
_WRITING = 60.0
_HANDLED = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupted(KeyboardInterrupt):
    """Raised by `Signals.check`, never by a signal handler."""


class Signals:
    """The signals of a process, and what is to be done before it leaves.

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
        self._looks = False
        self._noticed = threading.Event()
        self._again = 0

    def install(self) -> None:
        """Handle the signals of this process. Those that it was told to ignore, as by nohup, stay ignored."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        for name in _HANDLED:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), daemon=True, name="alchemi-jax signals").start()

    def _note(self, number: int, frame: Any) -> None:
        self.number = self.number or number

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.number or signal.SIGINT)

    @property
    def word(self) -> str:
        """What happened, for messages."""
        return "terminated" if self.number == signal.SIGTERM else "interrupted"

    # -- in the main thread ------------------------------------------------------------------------

    def attend(self) -> None:
        """From now on `check` is called every now and then."""
        self._looks = True

    def check(self) -> None:
        """Between compiled segments: go on, or raise if there was a signal.

        Raises:
            Interrupted: the caller writes what it has reached and returns `exit_code`.
        """
        if self.number is not None:
            self._noticed.set()
            raise Interrupted

    @contextlib.contextmanager
    def looks(self) -> Iterator[None]:
        """Around code that may call `check`; after it nobody looks."""
        try:
            yield
        finally:
            self._looks = False

    def on_leave(self, close: Callable[[], Any]) -> None:
        """Call a function before the process leaves in the middle of something; the last one comes first."""
        self._closers.append(close)

    # -- in the thread -----------------------------------------------------------------------------

    def _watch(self, pipe: int) -> None:
        while True:
            for number in os.read(pipe, 64):
                if number not in [getattr(signal, name, None) for name in _HANDLED]:
                    continue
                self.number = self.number or number
                self._again += 1
                if self._again == 1:
                    threading.Thread(target=self._end, daemon=True).start()
                elif self._noticed.is_set() or self._again > 2:
                    # Asked again while the results are written.
                    self.leave()

    def _end(self) -> None:
        until = time.monotonic() + NOTICE
        while self._looks and time.monotonic() < until:
            if self._noticed.wait(0.02):
                return
        if not self._noticed.is_set():
            self.leave()

    def leave(self) -> None:
        """Close the files, say one sentence, and end the process."""
        held = self.files.acquire(timeout=_WRITING)
        for close in reversed(self._closers):
            with contextlib.suppress(Exception):
                close()
        with contextlib.suppress(Exception):
            # By the number of the stream: the main thread may hold the lock of `sys.stderr`.
            os.write(2, f"{self.sentence()}\n".encode(errors="replace"))
        del held
        os._exit(self.exit_code)

    def sentence(self) -> str:
        """What happened, and what is left on disk."""
        command = f" {self.command}" if self.command else ""
        return f"alchemi-jax{command}: {self.word}: {self.describe()}."
