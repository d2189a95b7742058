"""What an algorithm is: fields, what it says of itself, the functions that it writes, and its hooks."""

import contextlib
import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from alchemi_jax.dynamics.rescue import Rescue, as_rescue
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.updates import by_system
from alchemi_jax.hooks import HookSet
from alchemi_jax.hooks.groups import Group, make_groups
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Described
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.systems.observables import kinetic_energy


_E = TypeVar("_E", bound="Algorithm")


class Algorithm(Described):
    """The part of an engine that an algorithm writes, and its hooks; `AbstractDynamics` has the rest.

    Attributes:
        model: gives energies and forces.
        n_steps: budget of steps for each system, None: no limit. A leaf: no compiling when it changes.
        hooks: a HookSet, made from a list of hooks.
        rescue: what is done before a system fails, a `Rescue`; None: nothing.
    """

    model: eqx.AbstractVar[AbstractModel]
    n_steps: eqx.AbstractVar[Int[Array, ""] | None]
    hooks: eqx.AbstractVar[HookSet]
    rescue: Rescue | None = eqx.field(converter=as_rescue, default=None, kw_only=True)

    _stage_type: ClassVar[Any] = DynamicsStage
    #: Whether this algorithm reads `batch.stress` in every step.
    needs_stress: ClassVar[bool] = False
    #: Whether `batch.velocities` are what this algorithm moves by. A system that enters a stage which does
    #: from one which does not gets velocities from `admit`.
    has_velocities: ClassVar[bool] = True
    #: What hooks may ask of this algorithm through `batch.target_...`: "temperature", "pressure".
    follows_targets: ClassVar[frozenset[str]] = frozenset()
    #: Parameters that say how far a step goes. Those of a rescued system are multiplied by a factor.
    step_lengths: ClassVar[tuple[str, ...]] = ("dt",)

    def init_state(self, batch: Batch) -> Any:
        """The algorithm's own state before the first step: a Module whose fields declare levels, or None."""
        return None

    @abstractmethod
    def pre_update(self, batch: Batch, state: Any) -> tuple[Batch, Any]:
        """Batch and own state after what precedes the new forces. Pure; every system at once.

        An algorithm that draws noise takes a third argument, `key`: that of the run.
        """

    def post_update(self, batch: Batch, state: Any) -> tuple[Batch, Any]:
        """Batch and own state after what follows the new forces."""
        return batch, state

    def admit(self, batch: Batch, key: PRNGKeyArray) -> Batch:
        """What a system begins with that enters this stage of a pipeline from a relaxation."""
        return batch

    def time_step(self, batch: Batch, state: Any) -> Any:
        """By how much a step advances the time of each system, fs, [systems] or a number; None: not at all.

        By default `dt`, where the algorithm moves by velocities. Override it where dt changes.
        """
        return getattr(self, "dt", None) if self.has_velocities else None

    def total_energy(self, batch: Batch, state: Any) -> Float[Array, " systems"]:
        """What the exact motion conserves, [systems], eV, from batch and own state."""
        return batch.energy + kinetic_energy(batch)

    def ensemble_energy(self, batch: Batch) -> Float[Array, " systems"]:
        """What the ensemble weighs by exp(-H/k_B T), without momenta, [systems], eV: the potential energy,
        and P V with a barostat."""
        return batch.energy

    def scale_momenta(self, state: Any, factor: Float[Array, " systems"]) -> Any:
        """The own state with its momenta scaled, after a hook has swapped temperatures: the factor of each
        system is sqrt(T_new/T_old), by which its velocities were scaled."""
        return state

    def shorten_steps(self: _E, batch: Batch, factor: Float[Array, " systems"]) -> _E:
        """The algorithm with shorter steps: `step_lengths`, per system, times the factor of each."""
        lengths = {name: getattr(self, name, None) for name in self.step_lengths}
        return unsafe_replace(
            self, **{n: by_system(batch, x) * factor for n, x in lengths.items() if x is not None}
        )

    def shorten_state(self, state: Any, factor: Float[Array, " systems"]) -> Any:
        """The own state of systems that were rescued, where it has a time step of its own: times a factor."""
        return state

    def unbalanced_stress(self, batch: Batch) -> Float[Array, "systems 3 3"]:
        """Stress that the algorithm works against, [systems, 3, 3], eV/Å³: convergence is judged by it."""
        return batch.stress

    def relaxes_cell(self, batch: Batch) -> Bool[Array, " systems"]:
        """Systems whose cell a relaxation changes: they are converged when the stress is, too."""
        return jnp.zeros(batch.energy.shape, bool)

    def check(self, batch: Batch) -> None:
        """Called once, on the host, before the first step.

        Raises:
            ValueError: naming the system, if the algorithm cannot treat it.
        """

    # -- its hooks -------------------------------------------------------------------------------

    @property
    def groups(self) -> tuple[Group, ...]:
        """The hooks, and the stages to which they belong."""
        return make_groups([(None, self.hooks)])

    def with_hooks(self: _E, *hooks: Any) -> _E:
        """An engine with more hooks, after those that this one has; this one stays as it is."""
        return dataclasses.replace(self, hooks=[*self.hooks, *hooks])

    register_hook = with_hooks

    def on_device(self: _E) -> _E:
        """The engine as compiled code sees it: without host hooks."""
        hooks = self.hooks.on_device()
        return self if hooks is self.hooks else unsafe_replace(self, hooks=hooks)

    def _shown(self) -> list[tuple[str, Any]]:
        # The fields of the base class are first. A rescue is shown last, and only if there is one.
        shown = dict(super()._shown())
        rescue = shown.pop("rescue", None)
        return [*shown.items(), *([] if rescue is None else [("rescue", rescue)])]

    def __enter__(self: _E) -> _E:
        with contextlib.ExitStack() as stack:
            for group in self.groups:
                group.hooks.open()
                stack.push(group.hooks.close)
            stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        stack = contextlib.ExitStack()
        for group in self.groups:
            stack.push(group.hooks.close)
        stack.__exit__(*exc)


__all__ = ["Algorithm"]
