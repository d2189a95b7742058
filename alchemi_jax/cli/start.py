"""The program `alchemi-jax`: signals are handled before anything else is imported."""

import contextlib
import os
import sys
from typing import Any, NoReturn

from alchemi_jax.cli.signals import Signals


def start() -> NoReturn:
    """Run the command of this process and end it."""
    signals = Signals()
    signals.install()
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Å gets a question mark, not an error.
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    from alchemi_jax.cli.main import main

    code = main(signals=signals)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # At once: while Python takes itself apart signals have their defaults again, and threads of XLA may be at
    # work.
    os._exit(signals.exit_code if signals.number is not None else code)
