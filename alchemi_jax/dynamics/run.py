"""Running an engine on a batch or a state, and what ends a run early."""

import builtins
import warnings
from typing import Any

from jaxtyping import PRNGKeyArray

from alchemi_jax.dynamics import driver, shrink
from alchemi_jax.dynamics.check import with_budget
from alchemi_jax.dynamics.driver import NO_LIMIT, Interrupted, Run
from alchemi_jax.dynamics.final import record_final
from alchemi_jax.dynamics.finish import finalize
from alchemi_jax.dynamics.loop import steps_of_budget
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.errors import name_of
from alchemi_jax.systems.batch import Batch
from alchemi_jax.transforms import is_traced


def run(engine: Engine, batch: Batch, n_steps: int | None, key: PRNGKeyArray | None, shrinks: bool) -> Batch:
    """See `AbstractDynamics.run`."""
    engine = with_budget(engine, n_steps)
    most = steps_of_budget(engine)
    assert most is not None
    if shrinks:
        # Before anything is compiled.
        shrink.check(engine, batch)
    with engine:
        state = driver.init(engine, batch, key)
        state = advance(engine, state, int(most), shrinks)
        out = finalize(engine, state)
        record_final(engine, state, out)
        return out


def advance(engine: Engine, state: DynamicsState, n_steps: int, shrinks: bool = False) -> DynamicsState:
    """See `AbstractDynamics.advance`."""
    if is_traced((engine, state)):
        raise ValueError(
            f"{name_of(engine)}.advance calls the host between compiled segments, so it cannot be traced: "
            "inside jit, vmap and grad use loop or rollout."
        )
    run = Run(engine, state)
    walk: Any = shrink.ShrinkingRun(run) if shrinks else run
    with engine:
        try:
            walk.advance(min(run.report.step + int(n_steps), NO_LIMIT))
        except BaseException as e:
            try:
                run.drain()
            except Exception as second:
                e.add_note(f"while the rows recorded so far were written: {second}")
            walk.restore()
            if not isinstance(e, KeyboardInterrupt):
                raise
            text = f"{name_of(engine)} was interrupted after step {run.report.step}"
            if _in_notebook():
                warnings.warn(f"{text}; this is the state so far.", RuntimeWarning, stacklevel=3)
                return run.with_names()
            stopped = Interrupted(f"{text}; the state so far is the `state` of this exception.")
            stopped.state = run.with_names()
            for note in getattr(e, "__notes__", ()):
                stopped.add_note(note)
            raise stopped from e
        run.drain()
        walk.restore()
    return run.with_names()


def _in_notebook() -> bool:
    return hasattr(builtins, "__IPYTHON__")
