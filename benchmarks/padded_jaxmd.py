"""`PEERS/bin/python -m benchmarks.padded_jaxmd`: W5 by jax-md, clusters padded to 55 atoms and mapped.

Atoms of padding stand far from everything, where the cut-off potential has no force. Prints a JSON line, as
the peers' scripts do; run it in an environment with jax-md, from the root of this repository.
"""

import argparse
import json
import statistics
import time

import jax


def main() -> None:
    """Relaxes the 512 clusters, `places` at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float64", choices=("float32", "float64"))
    parser.add_argument("--places", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", args.dtype == "float64")
    import jax.numpy as jnp
    import numpy as np
    from jax_md import energy, minimize, space

    from benchmarks.structures import EPSILON, MASS, SIGMA, assorted_clusters

    clusters = assorted_clusters()
    most = max(map(len, clusters))
    padded = np.zeros((len(clusters), most, 3))
    padded[:, :, 0] = 1e3 * (1 + np.arange(most))
    for row, atoms in zip(padded, clusters, strict=True):
        row[: len(atoms)] = atoms.positions
    positions = jnp.asarray(padded, args.dtype).reshape(-1, args.places, most, 3)
    displacement, shift = space.free()
    # Lengths in units of sigma, as jax-md has them.
    potential = energy.lennard_jones_pair(
        displacement, sigma=SIGMA, epsilon=EPSILON, r_onset=48 / SIGMA, r_cutoff=50 / SIGMA
    )
    init, apply = minimize.fire_descent(potential, shift, dt_start=10.0, dt_max=40.0)

    @jax.vmap
    def relaxed(r):
        def going(carry):
            state, i = carry
            return (i < 500) & (jnp.max(jnp.linalg.norm(state.force, axis=-1)) > 0.005)

        # Mass in eV fs²/Å².
        start = init(r, mass=MASS * 103.642696562), 0
        return jax.lax.while_loop(going, lambda c: (apply(c[0]), c[1] + 1), start)

    run = jax.jit(lambda r: jax.lax.map(relaxed, r))
    seconds = []
    for _ in range(args.repeats + 1):
        begun = time.perf_counter()
        _, steps = jax.block_until_ready(run(positions))
        seconds.append(time.perf_counter() - begun)
    s = statistics.median(seconds[1:])
    figures = {"s": s, "first_s": seconds[0], "systems_per_s": len(clusters) / s}
    found = {"steps": int(steps.max(axis=1).sum()), "steps_mean": float(steps.mean())}
    print(json.dumps({"peer": "jax-md", "workload": "W5", "dtype": args.dtype, **figures, **found}))


if __name__ == "__main__":
    main()
