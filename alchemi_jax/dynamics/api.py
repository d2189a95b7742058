"""relax_all and integrate_all: relaxation and dynamics of any number of structures, in one call."""

import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.hooks import ConvergenceHook
from alchemi_jax.dynamics.hooks.convergence import SMAX
from alchemi_jax.dynamics.integrators import NPH, NPT, NVE, NVTBussi, NVTLangevin, NVTNoseHoover
from alchemi_jax.dynamics.optimizers import FIRE, FIREVariableCell
from alchemi_jax.dynamics.processes import check_one_process
from alchemi_jax.dynamics.sampler import Sampler
from alchemi_jax.dynamics.velocities import initialize_velocities
from alchemi_jax.io.sinks.base import Sink
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import as_key, positive
from alchemi_jax.systems.batch import Batch


#: ensemble -> engine, and which of temperature and pressure it needs.
ENSEMBLES: dict[str, tuple[type[AbstractDynamics], tuple[str, ...]]] = {
    "nve": (NVE, ()),
    "nvt": (NVTLangevin, ("temperature",)),
    "nvt-langevin": (NVTLangevin, ("temperature",)),
    "nvt-nose-hoover": (NVTNoseHoover, ("temperature",)),
    "nvt-bussi": (NVTBussi, ("temperature",)),
    "nph": (NPH, ("pressure",)),
    "npt": (NPT, ("temperature", "pressure")),
}


def relaxation(
    model: AbstractModel,
    *,
    fmax: Any = 0.05,
    n_steps: int = 1000,
    relax_cell: bool = False,
    pressure: Any = 0.0,
    smax: Any = SMAX,
    hooks: Any = (),
) -> AbstractDynamics:
    """The engine of `relax_all`: FIRE, or FIREVariableCell, with its ConvergenceHook."""
    criteria: list[dict[str, Any]] = [{"key": "fmax", "threshold": positive("fmax")(fmax)}]
    if not relax_cell:
        return FIRE(model=model, n_steps=n_steps, hooks=[ConvergenceHook(criteria), *hooks])
    criteria.append({"key": "smax", "threshold": positive("smax")(smax)})
    hooks = [ConvergenceHook(criteria), *hooks]
    return FIREVariableCell(model=model, n_steps=n_steps, scalar_pressure=pressure, hooks=hooks)


def integrator(model: AbstractModel, *, ensemble: str, n_steps: int, **parameters: Any) -> AbstractDynamics:
    """The engine of `integrate_all`. Parameters that are None have the defaults of the engine.

    Raises:
        ValueError: for an unknown ensemble, or one without its temperature or pressure.
        TypeError: for a parameter that the ensemble does not have.
    """
    if ensemble not in ENSEMBLES:
        raise ValueError(f"ensemble is {', '.join(ENSEMBLES)}, not {ensemble!r}.")
    kind, keeps = ENSEMBLES[ensemble]
    given = {name: value for name, value in parameters.items() if value is not None}
    for name in keeps:
        if name not in given:
            raise ValueError(f"ensemble {ensemble!r} needs a {name}.")
    if ensemble == "nph":
        # It only determines the mass of the barostat.
        given.setdefault("temperature", 300.0)
    unknown = sorted(set(given) - {f for f in kind.__dataclass_fields__})
    if unknown:
        raise TypeError(f"ensemble {ensemble!r} has no {unknown[0]}.")
    make: Any = kind
    return make(model=model, n_steps=n_steps, **given)


def draw_velocities(temperature: Any, key: PRNGKeyArray | None) -> Callable[[Batch], Batch]:
    """A function that gives systems at rest velocities of a temperature, K."""

    def prepare(batch: Batch) -> Batch:
        still = ~np.asarray(batch.velocities != 0).any(axis=-1)
        moving = np.unique(np.asarray(batch.batch_idx)[~still])
        at_rest = jnp.asarray(~np.isin(np.arange(batch.system_capacity), moving))
        return initialize_velocities(batch, temperature, key).select(at_rest, batch)

    return prepare


def relax_all(
    model: AbstractModel,
    structures: Any,
    *,
    fmax: Any = 0.05,
    n_steps: int = 1000,
    relax_cell: bool = False,
    pressure: Any = 0.0,
    smax: Any = SMAX,
    hooks: Any = (),
    sink: Sink | None = None,
    policy: str = "largest first",
    resume: str | os.PathLike | None = None,
    client: Any = None,
    **stream: Any,
) -> Any:
    """Relax any number of structures, as many at once as fit into a batch.

    Args:
        model: the potential.
        structures: as for `Sampler`: a list, a generator, a path, a Batch, a sink.
        fmax: eV/Å, the largest force at which a structure has converged.
        n_steps: budget of each structure.
        relax_cell: whether to relax cells too.
        pressure: external pressure for cells, GPa.
        smax: largest component of the residual stress at which a cell has converged, eV/Å³.
        hooks: further hooks, such as LoggingHook.
        sink: stores structures as they finish; by default they are returned.
        resume: a folder of checkpoints from which the run continues, see `AbstractDynamics.run` and
            `run_on_cluster`.
        client: a `distributed.Client` of a Dask cluster, whose workers compute the structures, see
            `run_on_cluster`.
        policy, **stream: arguments of Sampler: devices, max_systems, max_atoms, unfit, dtype, ...

    Returns:
        A Batch in the order of the structures, with `converged`, `steps_taken` and `failed`; or the sink.
    """
    options = {"smax": smax, "pressure": pressure} if relax_cell else {}
    engine = relaxation(model, fmax=fmax, n_steps=n_steps, relax_cell=relax_cell, hooks=hooks, **options)
    return _run(engine, Sampler(structures, policy=policy, **stream), client, sink=sink, resume=resume)


def integrate_all(
    model: AbstractModel,
    structures: Any,
    *,
    n_steps: int,
    ensemble: str = "nvt",
    dt: Any = 1.0,
    temperature: Any = None,
    pressure: Any = None,
    hooks: Any = (),
    sink: Sink | None = None,
    key: PRNGKeyArray | None = None,
    parameters: dict[str, Any] | None = None,
    resume: str | os.PathLike | None = None,
    client: Any = None,
    **stream: Any,
) -> Any:
    """Molecular dynamics of any number of structures, as many at once as fit into a batch.

    Structures at rest get velocities of `temperature`, if it is given.

    Args:
        model: the potential.
        structures: as for `Sampler`: a list, a generator, a path, a Batch, a sink.
        n_steps: number of steps of each structure.
        ensemble: nve, nvt (Langevin), nvt-nose-hoover, nvt-bussi, nph or npt.
        dt: time step, fs.
        temperature: K.
        pressure: GPa.
        hooks: hooks of any kind, such as LoggingHook and SnapshotHook.
        sink: stores structures after their last step; by default they are returned.
        key: PRNG key of velocities and noise.
        parameters: further parameters of the engine: friction, thermostat_time, barostat_time, cell, ...
        resume: a folder of checkpoints from which the run continues, see `AbstractDynamics.run` and
            `run_on_cluster`.
        client: a `distributed.Client` of a Dask cluster, whose workers compute the structures, see
            `run_on_cluster`.
        **stream: arguments of Sampler: devices, max_systems, max_atoms, unfit, dtype, ...

    Returns:
        A Batch in the order of the structures; or the sink.
    """
    parameters = dict(parameters or {})
    if ensemble != "nve":
        parameters["temperature"] = temperature
    engine = integrator(
        model, ensemble=ensemble, n_steps=n_steps, dt=dt, pressure=pressure, hooks=hooks, **parameters
    )
    key = as_key(key)
    if temperature is not None:
        stream["prepare"] = draw_velocities(temperature, key)
    return _run(engine, Sampler(structures, **stream), client, sink=sink, key=key, resume=resume)


def _run(engine: AbstractDynamics, sampler: Sampler, client: Any, **options: Any) -> Any:
    if client is None:
        return engine.run(sampler=sampler, **options)
    from alchemi_jax.dynamics.cluster.run import run_on_cluster

    check_one_process("a run with client=")
    return run_on_cluster(engine, sampler, client, **options)


__all__ = ["ENSEMBLES", "draw_velocities", "integrate_all", "integrator", "relax_all", "relaxation"]
