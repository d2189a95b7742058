"""Opening and closing hooks, and the notes that name a hook in an exception."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from alchemi_jax.errors import UserCodeError, name_of


class Openings:
    """How often the hooks of a set are open, and how to close them; shared by all copies of an engine.

    All are equal, so that compiled code does not depend on it.
    """

    def __init__(self):
        self.depth = 0
        self.stack = contextlib.ExitStack()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Openings)

    def __hash__(self) -> int:
        return 0

    def open(self, hooks: Iterable[Any]) -> None:
        """Enters every hook that has `__enter__`, in order; within another opening it only counts."""
        if self.depth == 0:
            with contextlib.ExitStack() as stack:
                for hook in hooks:
                    if hasattr(hook, "__enter__") and hasattr(hook, "__exit__"):
                        with note_errors(hook, "when it was opened"):
                            stack.enter_context(_entered(hook))
                self.stack = stack.pop_all()
        self.depth += 1

    def close(self, *exc: Any) -> None:
        """Leaves the hooks in reverse order, when the outermost opening ends."""
        self.depth -= 1
        if self.depth > 0:
            return
        stack, self.stack = self.stack, contextlib.ExitStack()
        first = exc[1] if exc else None
        try:
            stack.__exit__(*(exc or (None, None, None)))
        except Exception as e:
            # The exception that ended the run matters more than the one that followed.
            if first is None or e is first:
                raise
            first.add_note(f"then a hook could not be closed: {type(e).__name__}: {e}")


@contextlib.contextmanager
def _entered(hook: Any) -> Iterator[None]:
    """The hook opened; it cannot swallow an exception, and an error in closing it names it."""
    hook.__enter__()
    try:
        yield
    except BaseException as e:
        with note_errors(hook, "when it was closed"):
            hook.__exit__(type(e), e, e.__traceback__)
        raise
    with note_errors(hook, "when it was closed"):
        hook.__exit__(None, None, None)


@contextlib.contextmanager
def note_errors(hook: Any, when: str) -> Iterator[None]:
    """Adds the hook's name and the place to whatever exception passes."""
    try:
        yield
    except UserCodeError:
        raise
    except Exception as e:
        e.add_note(f"raised in hook {name_of(hook)} {when}")
        raise
