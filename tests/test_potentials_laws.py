"""What holds of every potential: derivatives, symmetries, precision, transformations."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from potential_cases import CASES, evaluate, listed, solved

from alchemi_jax.models.base import cast


#: Unoptimized code of jax 0.10.1 makes NaN of the slope of Stillinger-Weber's exponential at its cutoff.
every = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.full_xla) if n == "StillingerWeber" else n for n in CASES],
)

#: Å, for central differences.
H = 1e-5


def needs(name):
    if name in ("EAM", "StillingerWeber", "Tersoff"):
        pytest.importorskip("matscipy")
    return solved(name)


def work(batch, values):
    """Sum over each system's atoms."""
    owner = np.asarray(batch.batch_idx)
    return np.bincount(owner, np.asarray(values), batch.system_capacity + 1)[:-1]


@every
def test_turned_shifted_and_in_another_order(name):
    """Newton's third law, too."""
    s = needs(name)
    n = len(s.case.structures)
    energy = np.asarray(s.results.energy)
    np.testing.assert_allclose(energy[n : 2 * n], energy[:n], rtol=1e-9, atol=1e-9)
    for i in range(n):
        forces, moved = s.forces(i), s.forces(n + i)
        scale = max(np.abs(forces).max(), 0.1)
        np.testing.assert_allclose(moved, forces[s.orders[i]] @ s.turn, atol=1e-9 * scale)
        np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-9 * scale)
        a, b = np.asarray(s.results.stress[i]), np.asarray(s.results.stress[n + i])
        np.testing.assert_allclose(b, s.turn.T @ a @ s.turn, atol=1e-9 * max(np.abs(a).max(), 1e-2))
        np.testing.assert_allclose(a, a.T, atol=1e-12 * max(np.abs(a).max(), 1e-2))
    assert not np.any(s.results.forces[s.batch.num_atoms :])


@pytest.fixture(scope="module")
def lanes():
    """Moved to and fro along a direction, strained to and fro: each lane alone, and all under vmap."""
    found = {}

    def of(name):
        if name in found:
            return found[name]
        s = needs(name)
        model, batch = s.case.model, s.batch
        rng = np.random.default_rng(0)
        direction = rng.normal(size=batch.positions.shape) * np.asarray(batch.atom_mask)[:, None]
        strain = rng.normal(size=batch.cell.shape)
        strain = (strain + strain.swapaxes(1, 2)) / 2
        owner = np.minimum(batch.batch_idx, batch.system_capacity - 1)
        inputs = []
        for along, stretch in ((H, 0), (-H, 0), (0, H), (0, -H)):
            f = np.eye(3) + stretch * strain
            moved = batch.replace(
                positions=jnp.asarray(np.einsum("na,nab->nb", batch.positions + along * direction, f[owner])),
                cell=jnp.asarray(np.einsum("sab,sbc->sac", batch.cell, f)),
            )
            neighbors = None if s.neighbors is None else listed(model, moved, s.neighbors.sizes)
            inputs.append((moved, neighbors))
        alone = [evaluate(model, *lane) for lane in inputs]
        together = eqx.filter_jit(eqx.filter_vmap(evaluate, in_axes=(None, 0, 0)))
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *inputs)
        found[name] = direction, strain, alone, together(model, *stacked)
        return found[name]

    return of


@every
def test_forces_and_stress_are_derivatives(name, lanes):
    s = needs(name)
    direction, strain, alone, _ = lanes(name)
    energy = [np.asarray(lane.energy) for lane in alone]
    size = np.maximum(np.abs(energy[0]), 1)
    along = (energy[0] - energy[1]) / (2 * H)
    expected = -work(s.batch, (s.results.forces * direction).sum(axis=1))
    scale = np.maximum(work(s.batch, np.abs(s.results.forces).sum(axis=1)), size)
    assert np.all(np.abs(along - expected) <= 1e-7 * scale)
    along = (energy[2] - energy[3]) / (2 * H)
    expected = (np.asarray(s.results.stress) * strain).sum((1, 2)) * np.abs(np.linalg.det(s.batch.cell))
    periodic = np.asarray(s.batch.pbc).all(axis=1)
    scale = np.maximum(np.abs(expected), size)[periodic]
    assert np.all(np.abs(along - expected)[periodic] <= 1e-6 * scale)


@every
def test_vmap_equals_a_loop(name, lanes):
    _, _, alone, together = lanes(name)
    for lane, one in enumerate(alone):
        scale = max(float(jnp.abs(one.forces).max()), 1.0)
        np.testing.assert_allclose(together.energy[lane], one.energy, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(together.forces[lane], one.forces, atol=1e-9 * scale)
        np.testing.assert_allclose(together.stress[lane], one.stress, atol=1e-9 * scale)


@every
def test_gradient_of_the_energy_and_second_derivatives(name, lanes):
    """The energy alone gives the same forces; the closed form can be differentiated once more."""
    s = needs(name)
    direction, _, alone, _ = lanes(name)
    model = s.case.model

    @eqx.filter_jit
    def run(model, batch, neighbors, direction):
        def energy(x):
            return jnp.where(batch.system_mask, model.energy(batch.replace(positions=x), neighbors), 0).sum()

        def forces(x):
            return model.evaluate(batch.replace(positions=x), neighbors).forces

        gradient = jax.grad(energy)(batch.positions)
        if name == "ASEModel":
            return gradient, None
        return gradient, jax.jvp(forces, (batch.positions,), (direction,))[1]

    gradient, change = run(model, s.batch, s.neighbors, jnp.asarray(direction))
    scale = max(float(jnp.abs(s.results.forces).max()), 1.0)
    mask = np.asarray(s.batch.atom_mask)
    np.testing.assert_allclose(gradient[mask], -s.results.forces[mask], atol=1e-10 * scale)
    if name == "ASEModel":
        with pytest.raises(NotImplementedError, match=r"Differentiate model\.energy, once"):
            eqx.filter_jvp(
                jax.grad(lambda x: model.energy(s.batch.replace(positions=x), None).sum()),
                (s.batch.positions,),
                (jnp.asarray(direction),),
            )
        return
    difference = (alone[0].forces - alone[1].forces) / (2 * H)
    scale = float(jnp.abs(difference).max())
    np.testing.assert_allclose(change[mask], difference[mask], atol=1e-6 * scale)


@every
def test_float32_keeps_digits(name):
    s = needs(name)
    narrow = jax.tree.map(
        lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, s.batch
    )
    neighbors = None
    if s.neighbors is not None:
        neighbors = cast(s.neighbors, jnp.float32)
    results = evaluate(s.case.model, narrow, neighbors)
    for name in ("energy", "forces", "stress"):
        wide, found = (np.asarray(getattr(r, name)) for r in (s.results, results))
        assert found.dtype == np.float32
        scale = max(np.nanmax(np.abs(wide)), 1.0)
        # Turned copies stand 20 Å away, where a position has digits to 1e-6 Å.
        np.testing.assert_allclose(found, wide, atol=3e-5 * scale, rtol=0)


SWEPT = {
    "StillingerWeber": lambda m, x: dataclasses.replace(m, sigma=x * m.sigma, lam=x * m.lam),
    "EMT": lambda m, x: dataclasses.replace(m, parameters=x * m.parameters),
    "EAM": lambda m, x: dataclasses.replace(m, density=x * m.density, embedding=x * m.embedding),
    "Tersoff": lambda m, x: dataclasses.replace(m, parameters=m.parameters | {"A": x * m.parameters["A"]}),
}


@pytest.mark.parametrize("name", SWEPT)
def test_numbers_are_leaves(name):
    """They are swept by vmap and differentiated; the closed forms carry the gradients."""
    s = needs(name)

    @eqx.filter_jit
    def run(model, batch, neighbors, x):
        def energy(x):
            swept = SWEPT[name](model, x)
            return jnp.where(batch.system_mask, swept.energy(batch, neighbors), 0).sum()

        return jax.vmap(jax.value_and_grad(energy))(x)

    x = jnp.array([0.999, 0.999 + H, 0.999 - H])
    energy, slope = run(s.case.model, s.batch, s.neighbors, x)
    np.testing.assert_allclose(slope[0], (energy[1] - energy[2]) / (2 * H), rtol=1e-6)
    assert len(set(energy.tolist())) == 3
