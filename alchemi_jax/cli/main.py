"""`alchemi-jax`: finds the command, runs it, and turns what went wrong into one sentence and an exit code.

Signals are handled before anything else is imported, so little is imported here.
"""

import contextlib
import os
import sys
import warnings
from importlib import import_module
from typing import Any, NoReturn

from alchemi_jax._version import __version__
from alchemi_jax.cli.outcome import OK, USAGE, Mistakes, UsageError, did_you_mean, os_reason
from alchemi_jax.cli.signals import Signals


def start() -> NoReturn:
    """Run the command of this process and end it."""
    signals = Signals()
    signals.install()
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Å gets its number, not an error.
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    warnings.showwarning = _warn
    code = main(signals=signals)
    _disconnect()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # At once: while Python takes itself apart signals have their defaults again, and threads of XLA may be at
    # work.
    os._exit(signals.exit_code if signals.number is not None else code)


def _processes() -> Any:
    """The module of what processes share, if anything has imported it."""
    return sys.modules.get("alchemi_jax.shared")


def _process() -> str:
    """ "process 1 of 2: ", if there are several."""
    processes = _processes()
    rank, size = (0, 1) if processes is None else processes.world()
    return f"process {rank} of {size}: " if size > 1 else ""


def _disconnect() -> None:
    """Leave the other processes, if there are any, in order."""
    processes = _processes()
    if processes is not None:
        with contextlib.suppress(Exception):
            processes.disconnect()


def _warn(message: Any, *details: Any, **more: Any) -> None:
    """A warning in a line, without the place in the code."""
    _say(f"alchemi-jax: {_process()}warning: {' '.join(str(message).split())}")


def main(arguments: list[str] | None = None, signals: Signals | None = None) -> int:
    """Run a command; returns the exit code.

    Args:
        arguments: by default those of the process, which this then ends (see `start`).
        signals: what Ctrl-C and SIGTERM do; by default they are not handled here.
    """
    if arguments is None and signals is None:
        start()
    words = list(sys.argv[1:] if arguments is None else arguments)
    signals = Signals() if signals is None else signals
    command = ""
    try:
        return _run(words, signals)
    except UsageError as e:
        if words and not words[0].startswith("-"):
            command = f" {words[0][:40]}"
        text = str(e).replace("?.", "?")
        # A name of a file may hold ends of lines.
        text = text if isinstance(e, Mistakes) else "\\n".join(text.splitlines())
        _say(f"alchemi-jax{command}: {_process()}error: {text}")
        return USAGE
    except KeyboardInterrupt:
        return signals.exit_code
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else OK
    except BrokenPipeError:
        # The reader of our output has gone, as in `alchemi-jax show FOLDER | head`.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _run(words: list[str], signals: Signals) -> int:
    from alchemi_jax.cli.flags import COMMANDS, parse

    if not words or words[0] in ("-h", "--help"):
        print(_help(COMMANDS))
        if not words:
            raise UsageError(f"a command is missing: {', '.join(COMMANDS)}.")
        return OK
    if words[0] == "--version":
        print(f"alchemi-jax {__version__}")
        return OK
    name = words[0]
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        raise UsageError(
            f"there is no {what} {name[:80]!r}, the commands are {', '.join(COMMANDS)}"
            f"{did_you_mean(name, COMMANDS)}."
        )
    signals.command = name
    asked = parse(name, words[1:])
    # XLA remarks, at length, that code from the cache on disk prefers certain features of the machine. It
    # reads this when jaxlib is loaded.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    module, _, function = COMMANDS[name].run.partition(":")
    try:
        return getattr(import_module(module), function)(asked, signals)
    except RuntimeError as e:
        if _processes() is None or not isinstance(e, sys.modules["alchemi_jax.messages"].OtherProcessError):
            raise
        # It has said so itself.
        return USAGE
    except OSError as e:
        if isinstance(e, BrokenPipeError):
            raise
        path = e.filename if isinstance(e.filename, str) else ""
        raise UsageError(
            f"{path} cannot be written: {os_reason(e)}." if path else f"{os_reason(e)}."
        ) from None


def _help(commands: dict[str, Any]) -> str:
    lines = ["usage: alchemi-jax COMMAND ...", "", "Batched atomistic dynamics in JAX.", ""]
    lines += [f"  {name:9}{command.help}" for name, command in commands.items()]
    lines += ["", "  --version", "", "alchemi-jax COMMAND --help describes a command."]
    return "\n".join(lines)


def _say(text: str) -> None:
    # A name of a file may hold bytes that are no text.
    text = text.encode("utf-8", errors="backslashreplace").decode()
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr)


if __name__ == "__main__":
    start()
