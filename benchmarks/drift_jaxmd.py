"""The total energy of W2 in NVE by jax-md, as `python -m benchmarks.physics --drift` does it with ours.

`PEERS/bin/python benchmarks/drift_jaxmd.py PATH_OF_PEERS_SCRIPTS --systems 8`, with an interpreter that has
jax-md; structures are those of `shared/bench/common.py`. Nothing here imports alchemi_jax.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np


parser = argparse.ArgumentParser()
parser.add_argument("peers", help="the folder of common.py")
parser.add_argument("--dtype", default="float32")
parser.add_argument("--systems", type=int, default=8)
parser.add_argument("--steps", type=int, default=10_000)
options = parser.parse_args()
jax.config.update("jax_enable_x64", options.dtype == "float64")
sys.path.insert(0, options.peers)

from common import EPS, MASS, RC, SIG, w2  # noqa: E402
from jax_md import energy, partition, quantity, simulate, space  # noqa: E402


EVERY = 50
M = MASS * 103.642696562  # amu in eV fs²/Å²
systems = w2(options.systems)
box = float(systems[0].cell[0, 0])
displacement, shift = space.periodic(box)
neighbors, potential = energy.lennard_jones_neighbor_list(
    displacement,
    box,
    sigma=SIG,
    epsilon=EPS,
    # In units of sigma there.
    r_onset=7.5 / SIG,
    r_cutoff=RC / SIG,
    dr_threshold=1.0 / SIG,
    format=partition.OrderedSparse,
)
dtype = jnp.dtype(options.dtype)
positions = jnp.asarray([s.positions for s in systems], dtype)
velocities = jnp.asarray([s.arrays["v_A_fs"] for s in systems], dtype)
allocated = neighbors.allocate(positions[0], extra_capacity=64)
init, apply = simulate.nve(potential, shift, 4.0)


def run(r, v):
    near = neighbors.update(r, allocated)
    state = init(jax.random.PRNGKey(0), r, kT=0.0, mass=M, neighbor=near).set(momentum=v * M)

    def step(_, carry):
        state, near = carry
        near = near.update(state.position)
        return apply(state, neighbor=near), near

    def record(carry, _):
        state, near = jax.lax.fori_loop(0, EVERY, step, carry)
        u = potential(state.position, neighbor=near.update(state.position))
        k = quantity.kinetic_energy(momentum=state.momentum, mass=state.mass)
        return (state, near), (u, k)

    (_, near), rows = jax.lax.scan(record, (state, near), None, length=options.steps // EVERY)
    return rows, near.did_buffer_overflow


(u, k), overflow = jax.jit(lambda r, v: jax.lax.map(lambda rv: run(*rv), (r, v)))(positions, velocities)
assert not bool(overflow.any())
total = (np.asarray(u, float) + np.asarray(k, float)).T / len(systems[0])
slopes = np.polyfit(np.arange(len(total)) * EVERY * 4e-6, total, 1)[0]
print(
    f"jax-md {options.dtype}: drift {slopes.mean():+.2e} +- {slopes.std(ddof=1) / np.sqrt(len(systems)):.1e} "
    f"eV/atom/ns over {options.steps} steps of 4 fs, {len(systems)} systems; "
    f"fluctuation {(total - total.mean(0)).std():.1e} eV/atom"
)
