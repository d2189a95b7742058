"""The workloads, run by alchemi_jax: everything from a batch on the device to relaxed or moved systems."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, ConvergenceHook
from alchemi_jax.models import LennardJones


EPSILON, SIGMA = 0.0104, 3.40


def perturbed_clusters(n: int) -> list[Atoms]:
    """Icosahedra of 13 argon atoms with noise of 0.25 Å, seed 1000 + i: those of the peers' W1."""
    golden = (1 + 5**0.5) / 2
    corners = [(0, a, b * golden) for a in (1, -1) for b in (1, -1)]
    corners += [(b, c, a) for a, b, c in corners[:4]] + [(c, a, b) for a, b, c in corners[:4]]
    shell = np.array([(0, 0, 0), *corners], float)
    shell *= 0.96 * 2 ** (1 / 6) * SIGMA / np.linalg.norm(shell[1])
    noise = (np.random.default_rng(1000 + i).normal(0, 0.25, (13, 3)) for i in range(n))
    return [Atoms("Ar13", positions=shell + d) for d in noise]


def timed(run: Callable[[], Any], repeats: int) -> dict[str, float]:
    """First call apart, then the median, least and most of the others, in seconds."""
    begun = time.perf_counter()
    run()
    first = time.perf_counter() - begun
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return {
        "s": statistics.median(seconds),
        "s_min": min(seconds),
        "s_max": max(seconds),
        "first_s": first,
    }


def w1(dtype: str, repeats: int) -> dict[str, Any]:
    """256 perturbed 13-atom clusters relaxed to fmax 0.005 eV/Å.

    Time steps as jax-md's run of it: 10 and at most 40 fs for argon's mass are 1.58 and 6.33 for
    FIRE's unit masses. Timed is `run`: first evaluation, loop, verdict.
    """
    mass = 39.948**0.5
    batch = Batch.from_ase(perturbed_clusters(256), dtype=dtype)
    engine = FIRE(
        model=LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=50.0),
        dt=10 / mass,
        dt_max=40 / mass,
        n_steps=500,
        hooks=[ConvergenceHook.from_fmax(0.005)],
    )
    result = timed(lambda: jax.block_until_ready(engine.run(batch).positions), repeats)
    out = engine.run(batch).take()
    return {
        "peer": "alchemi_jax",
        "workload": "W1",
        "dtype": dtype,
        **result,
        "systems_per_s": 256 / result["s"],
        "system_steps": int(out.steps_taken.sum()),
        "energy_mean": float(out.energy.mean()),
        "converged": int(out.converged.sum()),
    }


WORKLOADS = {"W1": w1}
