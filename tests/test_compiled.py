"""What XLA makes of a step, read in the compiled program: work that is repeated or copied in every step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cluster, crystal

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE
from alchemi_jax.dynamics.driver import Run
from alchemi_jax.dynamics.segments import compiled_segment
from alchemi_jax.systems.segments import max_by_system, sum_by_system, to_atoms


pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="of the CPU's compiler")


def computations(text):
    """The bodies of a program's computations, by name."""
    found = re.finditer(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?^\}", text, re.S | re.M)
    return {m.group(1): m.group(0) for m in found}


@pytest.mark.parametrize("reduction", [sum_by_system, max_by_system])
def test_a_sum_that_goes_back_to_the_atoms_is_made_once(reduction):
    """XLA puts cheap producers into gathers: a reduction there would be made again for each atom."""
    batch = Batch.from_ase([cluster(seed) for seed in range(16)])

    def shared(x):
        length = jnp.sqrt(reduction(batch, x * x))
        return x * to_atoms(batch, jnp.minimum(1, 1 / jnp.where(length > 0, length, 1)))

    text = jax.jit(shared).lower(jnp.ones(batch.atom_capacity)).compile().as_text()
    for name, body in computations(text).items():
        if "fused" in name:
            assert " gather(" not in body.partition(" reduce(")[2], name


@pytest.mark.parametrize("make", [cluster, crystal])
def test_no_step_copies_the_neighbor_list(lj, make):
    """The list is carried through the loop and its conditions in place; it is copied once, at first."""
    engine = NVE(model=lj, dt=2.0)
    run = Run(engine, engine.init(Batch.from_ase([make(0), make(1)])))
    arguments = (run.device, run.state, np.int32(10), np.bool_(False), np.int32(0))
    text = compiled_segment.lower(*arguments).compile().as_text()
    shape = ",".join(map(str, run.state.neighbors.index.shape))
    copies = [name for name, body in computations(text).items() if f"s32[{shape}]{{1,0}} copy(" in body]
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.M).group(1)
    assert set(copies) <= {entry}
