"""Open and close hooks, and add the name of a hook to exceptions."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from alchemi_jax.errors import UserCodeError, name_of


class Openings:
    """How many times the hooks of a set are open, and how to close them. All copies of an engine share it.

    All instances are equal, so that compiled code does not depend on them.
    """

    def __init__(self):
        self.depth = 0
        self.stack = contextlib.ExitStack()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Openings)

    def __hash__(self) -> int:
        return 0

    def open(self, hooks: Iterable[Any]) -> None:
        """Enter each hook that has `__enter__`, in order; if they are open already, only count."""
        if self.depth == 0:
            with contextlib.ExitStack() as stack:
                for hook in hooks:
                    if hasattr(hook, "__enter__") and hasattr(hook, "__exit__"):
                        with note_errors(hook, "when it was opened"):
                            stack.enter_context(_enter_hook(hook))
                self.stack = stack.pop_all()
        self.depth += 1

    def close(self, *exc: Any) -> None:
        """Exit the hooks in reverse order, when the outermost opening ends."""
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
    def suspended(self, hooks: Iterable[Any]) -> Iterator[None]:
        """A context in which the hooks are closed; if they were open, they are opened again after it."""
        depth, stack, self.stack = self.depth, self.stack, contextlib.ExitStack()
        stack.close()
        self.depth = 0
        try:
            yield
        finally:
            if depth:
                self.open(hooks)
            self.depth = depth


@contextlib.contextmanager
def _enter_hook(hook: Any) -> Iterator[None]:
    """A context with the hook open. The hook cannot suppress exceptions, and errors in closing name it."""
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
    """Add the name of the hook and the place to an exception that passes."""
    try:
        yield
    except UserCodeError:
        raise
    except Exception as e:
        e.add_note(f"raised in hook {name_of(hook)} {when}")
        raise


__all__ = ["Openings", "note_errors"]
