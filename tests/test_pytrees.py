"""Engines, models, hooks, batches and states as pytrees; sharding over devices."""

import copy
import pickle
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from cheap_xla import cheap_environment
from potential_cases import CASES
from transform_cases import ENGINES, MODELS, TRACED, WELLS, arrays_equal, free

from alchemi_jax.dynamics import NVTLangevin


MADE = {
    **{name: engine for name, (engine, _, _) in ENGINES.items()},
    **MODELS,
    **{name: (lambda make=make: make().model) for name, make in CASES.items() if name != "ASEModel"},
    **TRACED,
    "Batch": free,
    "DynamicsState": lambda: NVTLangevin(model=WELLS, dt=1.0, temperature=50.0).init(free()),
}


@pytest.mark.parametrize("name", sorted(MADE))
def test_what_a_pytree_must_do(name):
    made = MADE[name]
    thing = made() if callable(made) and not isinstance(made, eqx.Module) else made
    leaves, tree = jax.tree.flatten(thing)
    arrays, rest = eqx.partition(thing, eqx.is_array)
    copies = {
        "flattened": jax.tree.unflatten(tree, leaves),
        "mapped": jax.tree.map(lambda x: x, thing),
        "partitioned": eqx.combine(arrays, rest),
        "copied": copy.copy(thing),
        "deep": copy.deepcopy(thing),
        "compiled": eqx.filter_jit(lambda x: x)(thing),
    }
    # optax's own transformations are local functions, which pickle refuses.
    if name != "OptaxOptimizer":
        copies["pickled"] = pickle.loads(pickle.dumps(thing))
    for way, other in copies.items():
        assert type(other) is type(thing), way
        assert jax.tree.structure(other) == tree, way
        if all(eqx.is_array(x) for x in leaves):
            arrays_equal(other, thing, 0, 0)
    floats = [i for i, x in enumerate(leaves) if eqx.is_inexact_array(x) and bool(jnp.isfinite(x).any())]
    if floats:
        k = floats[0]
        changed = eqx.tree_at(lambda t: jax.tree.leaves(t)[k], thing, leaves[k] + 1)
        assert jax.tree.structure(changed) == tree
        # NaN, which says that something is not there, is equal to nothing.
        same = eqx.tree_equal(thing, copies["deep"])
        assert bool(same) == all(not eqx.is_inexact_array(x) or not jnp.isnan(x).any() for x in leaves)
        assert not bool(eqx.tree_equal(thing, changed))


SHARDED = """
import dataclasses, jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from jax.sharding import Mesh, PartitionSpec as P
from ase import Atoms
from alchemi_jax import Batch
from alchemi_jax.dynamics import NVTLangevin
from alchemi_jax.models import LennardJones

assert jax.device_count() == 2
grid = 3.8 * np.array([(i, j, k) for i in range(2) for j in range(2) for k in range(2)])
rng = np.random.default_rng(0)
systems = [Atoms("Ar8", positions=grid + rng.normal(0, 0.1, (8, 3))) for _ in range(4)]
engine = NVTLangevin(model=LennardJones(epsilon=0.0104, sigma=3.4), dt=4.0, temperature=60.0)
whole = engine.init(Batch.from_ase(systems, atom_capacity=32, system_capacity=4))

# One state for each device, stacked: each has two systems, with their ids.
parts = [Batch.from_ase(systems[i : i + 2], atom_capacity=16, system_capacity=2) for i in (0, 2)]
parts = [p.replace(meta=None, system_id=p.system_id + i) for p, i in zip(parts, (0, 2))]
states = [engine.init(p) for p in parts]
stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)

def on_each(engine, states):
    return jax.vmap(lambda s: engine.loop(s, 20))(states)

mesh = Mesh(np.array(jax.devices()), ("systems",))
run = jax.jit(jax.shard_map(on_each, mesh=mesh, in_specs=(P(), P("systems")), out_specs=P("systems"),
                            check_vma=False))
out = run(engine, stacked)
assert len(out.batch.positions.sharding.device_set) == 2
alone = jax.jit(lambda e, s: e.loop(s, 20))(engine, whole)
np.testing.assert_allclose(out.batch.positions.reshape(-1, 3), alone.batch.positions, atol=1e-10)
np.testing.assert_allclose(out.batch.energy.reshape(-1), alone.batch.energy, rtol=1e-10)
print("equal")
"""


def test_a_batch_sharded_over_devices_equals_the_whole():
    """Two devices of the host, in a process of its own."""
    devices = "--xla_force_host_platform_device_count=2"
    flags = cheap_environment(XLA_FLAGS=devices, JAX_PLATFORMS="cpu")
    done = subprocess.run([sys.executable, "-c", SHARDED], env=flags, capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
