"""FusedStage: several algorithms one after another, system by system, in one compiled loop."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.groups import Group, make_groups
from alchemi_jax.dynamics.updates import own_state, stage_key, updated
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import as_count
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import select, unsafe_replace
from alchemi_jax.systems.segments import to_atoms
from alchemi_jax.transforms import is_traced


class FusedStage(AbstractDynamics):
    """A pipeline, `relax + md`: each system goes through the stages at its own pace.

    A system is in the stage of its `status`. It moves on when a ConvergenceHook of the stage says so or when
    the stage's own `n_steps`, counted from its arrival, is used up; after the last stage it is finished.
    The model is evaluated once in a step, whatever the stages of the systems, and each system gets
    the update of its own stage.

    Hooks of a stage are called in steps in which a system is in that stage, and see those systems as
    `ctx.active_mask`; hooks of the pipeline see all, first at BEFORE_*, last elsewhere. A system that enters
    a stage starts there as in a run of its own: state and memories afresh, velocities drawn if it
    comes from a relaxation and the stage has a `temperature`, noise of `fold_in(key, stage)`.

    Args:
        stages: the engines, in order; pipelines among them are flattened. All have the same model.
        hooks: of the pipeline.
        n_steps: budget of a system over all stages; those of the stages count in any case.

    Raises:
        ValueError: if the stages have different models, or a nested pipeline has a budget of its own.
    """

    stages: tuple[AbstractDynamics, ...]
    hooks: HookSet
    n_steps: Array | None
    inner: tuple[HookSet, ...] = eqx.field(repr=False)
    inner_codes: tuple[tuple[int, ...], ...] = eqx.field(static=True, repr=False)

    def __init__(
        self,
        stages: Any,
        hooks: Any = (),
        n_steps: Any = None,
        inner: tuple[HookSet, ...] = (),
        inner_codes: tuple[tuple[int, ...], ...] = (),
    ):
        flat: list[AbstractDynamics] = []
        inner, inner_codes = tuple(inner), tuple(inner_codes)
        for stage in stages:
            if not isinstance(stage, AbstractDynamics):
                raise TypeError(f"a stage of FusedStage must be an engine, not a {type(stage).__name__}.")
            if isinstance(stage, FusedStage):
                if stage.n_steps is not None:
                    raise ValueError(
                        "a pipeline within a pipeline cannot have n_steps of its own: "
                        "give each of its stages one."
                    )
                codes = tuple(range(len(flat), len(flat) + stage.n_stages))
                inner += (stage.hooks, *stage.inner) if len(stage.hooks) else stage.inner
                moved = tuple(tuple(c + len(flat) for c in own) for own in stage.inner_codes)
                inner_codes += (codes, *moved) if len(stage.hooks) else moved
            flat.extend(stage.parts)
        if not flat:
            raise ValueError("FusedStage needs at least one stage.")
        first = flat[0].model
        for stage in flat[1:]:
            same = (
                stage.model is first or is_traced((stage.model, first)) or eqx.tree_equal(stage.model, first)
            )
            if not same:
                raise ValueError(
                    f"{type(flat[0]).__name__} and {type(stage).__name__} share one model evaluation per "
                    "step, but their models differ. Pass the same model object to both."
                )
        self.stages = tuple(flat)
        self.hooks = hooks if isinstance(hooks, HookSet) else HookSet(hooks)
        self.n_steps = as_count("n_steps")(n_steps)
        self.inner, self.inner_codes = inner, inner_codes

    def __repr__(self) -> str:
        lines = [f"stage {code}: {stage!r}" for code, stage in enumerate(self.stages)]
        lines += [f"hooks of stages {c}: {h!r}" for c, h in zip(self.inner_codes, self.inner, strict=True)]
        lines += [f"hooks: {self.hooks!r}"] if len(self.hooks) else []
        lines += [f"n_steps: {self.n_steps}"] if self.n_steps is not None else []
        return "FusedStage(\n  " + ",\n  ".join(lines) + "\n)"

    @property
    def model(self) -> AbstractModel:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The model of all stages."""
        return self.stages[0].model

    @property
    def n_stages(self) -> int:
        return len(self.stages)

    @property
    def parts(self) -> tuple[AbstractDynamics, ...]:
        return self.stages

    @property
    def max_steps(self) -> Any:
        budgets = [stage.n_steps for stage in self.stages]
        total = None if any(n is None for n in budgets) else sum(n for n in budgets if n is not None)
        if total is None or self.n_steps is None:
            return self.n_steps if total is None else total
        return jnp.minimum(total, self.n_steps)

    @property
    def groups(self) -> tuple[Group, ...]:
        own = [(None, self.hooks), *zip(self.inner_codes, self.inner, strict=True)]
        return make_groups([*own, *(((code,), stage.hooks) for code, stage in enumerate(self.stages))])

    def init_state(self, batch: Batch) -> tuple[Any, ...]:
        return tuple(own_state(stage, batch) for stage in self.stages)

    def pre_update(self, batch: Batch, state: tuple, key: Array) -> tuple[Batch, tuple]:
        return self._each("pre_update", batch, state, key)

    def post_update(self, batch: Batch, state: tuple, key: Array) -> tuple[Batch, tuple]:
        return self._each("post_update", batch, state, key)

    def _each(self, update: str, batch: Batch, states: tuple, key: Array) -> tuple[Batch, tuple]:
        merged, after = batch, []
        for code, (stage, state) in enumerate(zip(self.stages, states, strict=True)):
            new, new_state = updated(stage, update, batch, state, stage_key(key, code))
            mine = batch.status == code
            atoms = to_atoms(batch, mine)
            merged = select(atoms, mine, new, merged)
            after.append(select(atoms, mine, new_state, state))
        return merged, tuple(after)

    def total_energy(self, batch: Batch, state: tuple) -> Array:
        """Each system's by the algorithm of its stage, a finished one's by the last."""
        energies = [part.total_energy(batch, own) for part, own in zip(self.stages, state, strict=True)]
        return self._by_stage(batch, energies)

    def unbalanced_stress(self, batch: Batch) -> Array:
        return self._by_stage(batch, [part.unbalanced_stress(batch) for part in self.stages])

    def relaxes_cell(self, batch: Batch) -> Array:
        return self._by_stage(batch, [part.relaxes_cell(batch) for part in self.stages])

    def _by_stage(self, batch: Batch, values: list[Array]) -> Array:
        stage = jnp.clip(batch.status, 0, self.n_stages - 1)
        rows = jnp.arange(batch.system_capacity)
        return jnp.stack(values)[stage, rows]

    @property
    def _needs_stress(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(stage._needs_stress for stage in self.stages)

    @property
    def _targets(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return frozenset().union(*(stage._targets for stage in self.stages))

    def on_device(self) -> "FusedStage":
        if not any(group.hooks.host for group in self.groups):
            return self
        return unsafe_replace(
            self,
            stages=tuple(stage.on_device() for stage in self.stages),
            hooks=self.hooks.on_device(),
            inner=tuple(hooks.on_device() for hooks in self.inner),
        )
