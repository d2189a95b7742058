"""What ends a run early, and the state that it had reached."""

import builtins
from typing import Any

from alchemi_jax.dynamics.state import DynamicsState


class Interrupted(KeyboardInterrupt):
    """A run was stopped by Ctrl-C or by `CheckpointHook(should_stop=...)`.

    Attributes:
        state: the state reached; `advance` continues from it.
    """

    state: DynamicsState


def carry_state(error: BaseException, state: Any, ended: str = "the run ended after step {}") -> None:
    """Give an exception that ends a run or a training early the state reached, as its `state`.

    Args:
        state: None gives nothing. ended: what is said of it, with a place for the number of steps.
    """
    if state is None or hasattr(error, "state"):
        return
    try:
        error.state = state  # pyright: ignore[reportAttributeAccessIssue]
    except AttributeError:
        return
    error.add_note(f"{ended.format(int(state.step_count))}; its state is the `state` of this exception")


def interrupted(error: BaseException, text: str, state: DynamicsState) -> Interrupted:
    """The exception for Ctrl-C, with the state so far and the notes of the original one."""
    stopped = Interrupted(f"{text}; the state so far is the `state` of this exception.")
    stopped.state = state
    for note in getattr(error, "__notes__", ()):
        stopped.add_note(note)
    return stopped


def in_notebook() -> bool:
    """Whether an interactive session shows what is returned."""
    return hasattr(builtins, "__IPYTHON__")


__all__ = ["Interrupted", "carry_state", "in_notebook", "interrupted"]
