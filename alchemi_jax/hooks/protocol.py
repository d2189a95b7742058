"""The three kinds of hook, and the attributes that a workflow reads of a hook.

| kind | what you write | where it runs | may change the run |
|---|---|---|---|
| host | any object with `stage`, `frequency`, `__call__(ctx, stage)` | between compiled segments | no |
| traced | a `TracedHook`: a Module whose call returns a context | inside the compiled step | yes |
| recording | a `RecordingHook`: `record(ctx)` traced, `write(rows)` on the host | rows wait on device | no |

A hook of frequency f is called in the steps 0, f, 2f, ... of the run at its stage, or of each system if
it says so (`own_steps`). For several stages give the hook a method `_runs_on_stage(stage) -> bool`. A hook
with `__enter__` and `__exit__` is opened when a run (or the `with` block around several) starts and closed at
its end. `HookFlags` has all other attributes, with defaults.
"""

from abc import abstractmethod
from collections.abc import Hashable
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import numpy as np

from alchemi_jax.hooks.context import HookContext
from alchemi_jax.systems.batch import Batch


@runtime_checkable
class Hook(Protocol):
    """What every hook has; no base class is needed.

    A hook is called as `hook(ctx, stage)` with a `HookContext` and the stage. An object that is neither a
    `TracedHook` nor a `RecordingHook` is a host hook. It observes and returns nothing.

    Attributes:
        stage: the stage at which it is called, such as `DynamicsStage.AFTER_STEP`. A hook for several stages
            has a method `_runs_on_stage(stage) -> bool`.
        frequency: it is called in the steps 0, f, 2f, ...
    """

    stage: Enum | None
    frequency: int

    def __call__(self, ctx: Any, stage: Any) -> Any: ...


class HookFlags:
    """Attributes by which a hook says what it needs, with their defaults.

    Set one as an attribute of the hook or of its class; no base class is needed. Besides `stage` and
    `frequency` no other attributes are read.

    A host or recording hook that keeps or writes something needs two methods for checkpoints. A hook without
    them keeps nothing.

    `state()` returns what the hook needs to continue in another process, and how much it has written, which
    is on disk when `state` returns. The value is a tree of dictionaries (with text as keys), lists, tuples,
    text, numbers, None and numpy arrays.

    `set_state(state)` restores this, before the hook is opened: what was written later is removed. None
    stands for the beginning. It may be called again with the same state, after a process was killed during
    the call. It raises ValueError, naming the path, if something is missing.
    """

    needs_stress: bool = False
    """The hook reads `batch.stress`, so the model computes it in every step."""
    reads_batch: bool = True
    """Host hooks: the hook reads `ctx.batch`. With False the batch is not copied to the host."""
    judges_convergence: bool = False
    """Traced hooks at AFTER_STEP: the hook marks converged systems by increasing `status`. It is also called
    for systems that were just evaluated for the first time, before they take a step."""
    sets_targets: tuple[str, ...] = ()
    """"temperature" or "pressure": the hook writes `batch.target_...`, which the engine must follow."""
    swaps_temperatures: bool = False
    """The hook swaps temperatures and scales velocities; momenta in the algorithm's state are scaled, too."""
    final: bool = False
    """Host and recording hooks: the hook shows the state that a run ends with, too. It then has the method
    `call_final(ctx)` or, if it records, `write_final(rows, systems)` with the mask of those that end. In a
    refilled run it is called whenever systems leave, for them."""
    needs_fixed_systems: bool = False
    """The hook relates systems of a batch to one another, so none may leave, enter or change its row."""
    follows_systems: bool = False
    """Host and recording hooks: the hook identifies systems by `system_id`, so they may change their rows."""
    one_device: bool = False
    """Host hooks: the hook measures or controls the device, so the run must be on one device."""
    own_steps: bool = False
    """Host and recording hooks: the frequency counts the steps of each system, not those of the run. The hook
    is called in the steps in which it is due for any system, and these are its `ctx.active_mask` (at
    ON_CONVERGE its `ctx.converged_mask`). So what is seen of a system does not depend on when it entered."""
    ends_run: bool = False
    """Host hooks of a training: read after each call; the training ends if it is true."""
    reasons: tuple[str, ...] = ()
    """Traced hooks that call `ctx.stop` or `ctx.fail`: the texts of the reasons 0, 1, ..., at most eight."""


def flag(hook: Any, name: str) -> Any:
    """An attribute of a hook, or its default in `HookFlags`."""
    return getattr(hook, name, getattr(HookFlags, name))


def runs_on(hook: Any, stage: Enum) -> bool:
    """Whether a hook is called at a stage."""
    method = getattr(hook, "_runs_on_stage", None)
    return bool(method(stage)) if method is not None else hook.stage == stage


class TracedHook(eqx.Module):
    """A pure transform of the context, run inside the compiled step.

    Declare the fields `stage` and `frequency` (an int, 1 by default in most hooks) and write `__call__(ctx,
    stage)`, which returns a context. Fields that are Python floats become array leaves when the hook is
    attached, so that another value does not recompile.
    """

    stage: eqx.AbstractVar[Any]
    frequency: eqx.AbstractVar[int]

    def init(self, batch: Batch) -> Any:
        """The memory before the first step, a pytree of arrays; None by default.

        Arrays with a row per system or per atom must be declared: as fields `per_system()` and `per_atom()`
        of a Module, or as `PerSystem(array)` and `PerAtom(array)` (all in `alchemi_jax.levels`). All other
        arrays are shared by all systems and do not change when systems enter, leave or change rows.
        """
        return None

    def check(self, batch: Batch) -> None:
        """Check that the hook fits the batch. Called once, on the host, before the first step.

        Raises:
            ValueError: if the hook does not fit the batch.
        """

    def check_engine(self, engine: Any) -> None:
        """Check that the hook has a meaning in this engine. Called when it is attached.

        Raises:
            TypeError: naming hook and engine, if it has none.
        """

    def check_in(self, engine: Any, batch: Batch) -> None:
        """The same as `check`, for a hook that needs the engine for it."""
        self.check(batch)

    @abstractmethod
    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        """The new context. Only its batch and memory are used."""


class RecordingHook:
    """Rows that are recorded inside the compiled loop and written on the host, many at a time.

    Set `stage` and `frequency`, and define `record` and `write`. The device does not wait for them: rows stay
    in a buffer on the device until it is full, a segment ends, or the run ends.
    """

    stage: Any = None
    frequency: int = 1

    @abstractmethod
    def record(self, ctx: HookContext) -> Any:
        """One row: a pytree of arrays with shapes that do not depend on data. Traced."""

    @abstractmethod
    def write(self, rows: Any) -> None:
        """Write rows, numpy arrays with a leading axis `rows`, in order. On the host."""

    def trace_key(self) -> Hashable:
        """A key for what `record` depends on: hooks of one class with equal keys share compiled code."""
        return id(self)

    def __call__(self, ctx: HookContext, stage: Any) -> None:
        """Record and write a row: for workflows without buffers."""
        self.write(jax.tree.map(lambda x: np.asarray(x)[None], self.record(ctx)))


__all__ = ["Hook", "HookFlags", "RecordingHook", "TracedHook", "flag", "runs_on"]
