"""How a command ends: exit codes, and the error that a user can put right."""

from typing import Any

from alchemi_jax.spelling import did_you_mean as did_you_mean


#: 0: all is well. 2: bad usage, or a file that cannot be read or written. 3: ran, but some systems did not
#: converge or failed. 4: the time of --max-seconds is up, the same command goes on. Interrupted by a signal:
#: 128 and its number, 130 for Ctrl-C, 143 for SIGTERM.
OK, USAGE, INCOMPLETE, TIME_IS_UP = 0, 2, 3, 4


#: What to do about a file of results that is not what the run left.
INSTEAD = "put it back as the run left it, or give another out, or --overwrite to begin again"

#: And about one that cannot be written.
KEPT = "what was saved is kept, and the same command goes on when this is put right"


class UsageError(Exception):
    """What the user can put right, in one sentence."""


class Mistakes(UsageError):
    """Several things that the user can put right, a line for each after the first."""


def one_line(error: BaseException) -> str:
    """The message of an exception in one line, without a stop at its end; its type if it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:397]}..."


def sentence(error: BaseException) -> str:
    """The message of an exception in one line, with one stop, or three, at its end."""
    text = one_line(error)
    end = "..." if text.endswith("...") else "."
    return text.rstrip(".") + end


def os_reason(error: OSError) -> str:
    """Why the operating system refused, without the path."""
    # Sinks have put the path into the message.
    return (error.strerror or one_line(error).rpartition("cannot be written: ")[2]).rstrip(".")


def write_structures(path: Any, systems: Any) -> None:
    """The function of `alchemi_jax.cli.write`, under its former name; imported when it is called."""
    import importlib

    importlib.import_module("alchemi_jax.cli.write").write_structures(path, systems)
