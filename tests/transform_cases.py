"""One of each public hook and engine, small and cheap to compile, for the tests of transforms."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ase.build import bulk
from conftest import EPSILON, SIGMA, cluster, public

from alchemi_jax import Batch
from alchemi_jax.dynamics import (
    BFGS,
    FIRE,
    FIRE2,
    LBFGS,
    NPH,
    NPT,
    NVE,
    ConvergenceHook,
    FIRE2VariableCell,
    FIREVariableCell,
    GradientDescent,
    NVTBussi,
    NVTLangevin,
    NVTNoseHoover,
    OptaxOptimizer,
)
from alchemi_jax.dynamics import hooks as h
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.models import (
    CommitteeModel,
    FlaxModel,
    FunctionModel,
    GraphFunctionModel,
    HarmonicModel,
    LennardJones,
    Morse,
)
from alchemi_jax.neighbors import pair_vectors
from alchemi_jax.systems.observables import fmax, temperature
from alchemi_jax.systems.segments import sum_by_system


def public_classes(module, kind):
    """Names of the classes of a kind that a module offers and that one can make."""
    return {
        name
        for name, value in public(module).items()
        if isinstance(value, type) and issubclass(value, kind) and not inspect.isabstract(value)
    }


def free():
    """Three systems of four atoms, of which ladders of three can be made, with padding."""
    return Batch.from_ase([cluster(i, 4) for i in range(3)], system_capacity=3)


def periodic():
    return Batch.from_ase([bulk("Ar", "fcc", a=5.2 + 0.1 * i, cubic=True) for i in range(3)]).replace(
        meta=None
    )


class Springs(nn.Module):
    """A module of flax."""

    @nn.compact
    def __call__(self, batch, neighbors):
        k = self.param("k", lambda key: jnp.asarray(0.1))
        x, y, z, near = pair_vectors(batch, neighbors)
        terms = jnp.where(near, (x * x + y * y + z * z - 9.0) ** 2, 0)
        return k * sum_by_system(batch, terms.sum(axis=0))


def trap(params, batch, neighbors):
    """A function of a batch."""
    return params["k"] * sum_by_system(batch, jnp.sum(batch.positions**2, axis=1))


def bonds(params, graph):
    """A function of a graph: springs that end smoothly at 5 Å."""
    d = graph.distances
    of_edges = jnp.where(graph.edge_mask, (d - 3.5) ** 2 * jnp.maximum(1 - d / 5.0, 0) ** 2, 0)
    return params["k"] * jax.ops.segment_sum(of_edges, graph.receivers, graph.numbers.shape[0])


#: Those that `potential_cases` does not have.
MODELS = {
    "LennardJones": LennardJones(epsilon={"Ar": EPSILON}, sigma={"Ar": SIGMA}, cutoff=6.0, shift=True),
    "Morse": Morse(depth=0.02, width=1.6, r0=3.7, cutoff=6.0, onset=5.0),
    "HarmonicModel": HarmonicModel(k=1.0),
    "FlaxModel": FlaxModel(Springs(), {"params": {"k": jnp.asarray(0.1)}}, cutoff=5.0),
    "FunctionModel": FunctionModel(trap, {"k": 0.1}),
    "GraphFunctionModel": GraphFunctionModel(bonds, {"k": 0.1}, cutoff=5.0),
    "CommitteeModel": CommitteeModel.of(
        [GraphFunctionModel(bonds, {"k": k}, cutoff=5.0) for k in (0.1, 0.2)]
    ),
}

WELLS = HarmonicModel(k=1.0, center=(0.3, 0.2, 0.1))
_STOP = [ConvergenceHook.from_fmax(0.5)]

#: An engine, the parameter that lanes differ in, and whether it asks for periodic systems.
ENGINES = {
    "NVE": (NVE(model=WELLS, dt=1.0), "dt", False),
    "NVTLangevin": (NVTLangevin(model=WELLS, dt=1.0, temperature=50.0), "temperature", False),
    "NVTNoseHoover": (NVTNoseHoover(model=WELLS, dt=1.0, temperature=50.0), "thermostat_time", False),
    "NVTBussi": (NVTBussi(model=WELLS, dt=1.0, temperature=50.0), "temperature", False),
    "NPH": (NPH(model=WELLS, dt=1.0, pressure=0.1), "pressure", True),
    "NPT": (NPT(model=WELLS, dt=1.0, temperature=50.0, pressure=0.1, cell="flexible"), "temperature", True),
    "FIRE": (FIRE(model=WELLS, hooks=_STOP), "dt", False),
    "FIRE2": (FIRE2(model=WELLS), "dt", False),
    "FIREVariableCell": (FIREVariableCell(model=WELLS), "scalar_pressure", True),
    "FIRE2VariableCell": (FIRE2VariableCell(model=WELLS, scalar_pressure=0.1), "scalar_pressure", True),
    "GradientDescent": (GradientDescent(model=WELLS), "rate", False),
    "LBFGS": (LBFGS(model=WELLS, memory=3), "curvature", False),
    "BFGS": (BFGS(model=WELLS), "curvature", False),
    "OptaxOptimizer": (OptaxOptimizer(model=WELLS, optimizer=optax.adam(0.1)), "model.k", False),
    "FusedStage": (
        FIRE(model=WELLS, n_steps=2, hooks=_STOP) + NVTLangevin(model=WELLS, dt=1.0, temperature=50.0),
        "stages.1.temperature",
        False,
    ),
}


def distance(batch):
    d = batch.positions[batch.first_atom + 1] - batch.positions[batch.first_atom]
    return jnp.sqrt(jnp.sum(d * d, axis=-1) + 1e-12)


def bias(batch):
    return 0.1 * (distance(batch) - 3.8) ** 2


def warming(step):
    return 50.0 + 10.0 * step


def hot(batch):
    return temperature(batch) > 55.0


def nothing(ctx): ...


TRACED = {
    "ConvergenceHook": ConvergenceHook(
        [{"key": "fmax", "threshold": 0.5}, {"key": "energy_change", "threshold": 1.0}]
    ),
    "MaxForceClampHook": h.MaxForceClampHook(limit=1.0),
    "FreezeAtomsHook": h.FreezeAtomsHook([0, 3]),
    "WrapPeriodicHook": h.WrapPeriodicHook(frequency=2),
    "BiasedPotentialHook": h.BiasedPotentialHook(bias),
    "NaNDetectorHook": h.NaNDetectorHook(keys=("positions",)),
    "EnergyDriftMonitorHook": h.EnergyDriftMonitorHook(threshold=0.5),
    "TemperatureScheduleHook": h.TemperatureScheduleHook(warming),
    "PressureScheduleHook": h.PressureScheduleHook.ramp(0.0, 1.0, 3),
    "UncertaintyHook": h.UncertaintyHook(0.5, key="energy"),
    "GuardHook": h.GuardHook(hot, "it is hot"),
    "ReplicaExchangeHook": h.ReplicaExchangeHook([30.0, 40.0, 55.0], every=2, seed=1),
}


def recording(folder):
    return {
        "LoggingHook": h.LoggingHook(log_path=folder / "never.csv", frequency=2),
        "ObservableHook": h.ObservableHook({"fmax": fmax}, frequency=2),
    }


def host():
    return {
        "SnapshotHook": h.SnapshotHook(sink=HostMemory()),
        "ConvergedSnapshotHook": h.ConvergedSnapshotHook(sink=HostMemory()),
        "CheckpointHook": h.CheckpointHook("never"),
        "ProgressHook": h.ProgressHook(),
        "LivePlotHook": h.LivePlotHook(path="never.png"),
        "CallbackHook": h.CallbackHook(nothing),
        "StageTimingHook": h.StageTimingHook(),
        "ProfilerHook": h.ProfilerHook("never"),
    }


def arrays_equal(a, b, rtol=1e-9, atol=1e-11):
    """Leaf by leaf, NaN included; floats to rounding, all else exactly."""
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        where = jax.tree_util.keystr(path)
        if jnp.issubdtype(x.dtype, jnp.inexact):
            np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=where)
        else:
            assert (x == y).all(), where
