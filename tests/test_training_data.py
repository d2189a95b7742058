"""Data of trainings: sources, neighbors, order, mixtures, missing labels, losses, statistics, mistakes."""

import gzip
import itertools
import threading
import time
from pathlib import Path

import ase.io
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.neighborlist import neighbor_list
from conftest import cluster, zoo
from transform_cases import bonds

from alchemi_jax import Batch, Trajectory
from alchemi_jax.dynamics.sinks import HostMemory, ZarrData
from alchemi_jax.models import GraphFunctionModel, HarmonicModel, LennardJones, evaluate
from alchemi_jax.models.base import Results
from alchemi_jax.neighbors import Requirements
from alchemi_jax.neighbors.rows import neighbor_rows
from alchemi_jax.training import (
    Batches,
    Loss,
    Mixture,
    Trainer,
    errors,
    fit_element_energies,
    force_scale,
    network_for,
)
from alchemi_jax.training.prefetch import prefetch


KEY = jax.random.key(0)
HARMONIC = HarmonicModel()


def labelled(atoms, energy=None, forces=None, stress=None, **info):
    given = {"energy": energy, "forces": forces, "stress": stress}
    atoms.calc = SinglePointCalculator(atoms, **{k: v for k, v in given.items() if v is not None})
    atoms.info.update(info)
    return atoms


def some(n=7, seed=0):
    """Clusters and cells of a few atoms, with labels that tell them apart."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        atoms = cluster(i, 2 + i % 4) if i % 3 else bulk("Ar", "fcc", a=5.0 + 0.1 * i)
        forces, stress = rng.normal(0, 1, (len(atoms), 3)), rng.normal(0, 0.1, 6)
        out.append(labelled(atoms, -1.0 - i, forces, stress if atoms.pbc.all() else None))
    return out


def rows(batches):
    """Of each structure of a batch: energy, forces and stress, by energy."""
    found = {}
    for item in batches:
        host = item.to_batch().to_host()
        for row in range(item.num_systems):
            system = host[row]
            found[float(system.energy)] = (np.array(system.positions), np.array(system.forces), system.stress)
    return found


# -- sources -----------------------------------------------------------------------------------------


def test_every_source_gives_the_same_labels(tmp_path):
    """Files, compressed or not, databases, stores, sinks, trajectories, batches and lists."""
    atoms = some()
    batch = Batch.from_ase(atoms, results=True)
    ase.io.write(tmp_path / "a.extxyz", atoms)
    (tmp_path / "b.extxyz.gz").write_bytes(gzip.compress((tmp_path / "a.extxyz").read_bytes()))
    ase.io.write(tmp_path / "c.traj", atoms)
    for name in ("d.db", "e.json"):
        with connect(tmp_path / name) as db:
            for one in atoms:
                db.write(one)
    memory, store = HostMemory(), ZarrData(tmp_path / "f.zarr")
    memory.write(batch)
    store.write(batch)
    expected = rows(Batches(atoms).prepare(HARMONIC).in_order())
    assert len(expected) == len(atoms)
    sources = [*sorted(tmp_path.iterdir()), connect(tmp_path / "d.db"), memory, store, batch, batch.to_host()]
    for source in (*sources, list(batch.to_host()), Trajectory(tmp_path / "f.zarr")):
        found = rows(Batches(source, max_systems=3).prepare(HARMONIC).in_order())
        assert set(found) == set(expected), source
        for energy, (positions, forces, stress) in expected.items():
            np.testing.assert_allclose(found[energy][0], positions, atol=1e-7, err_msg=str(source))
            np.testing.assert_allclose(found[energy][1], forces, atol=1e-7)
            np.testing.assert_allclose(found[energy][2], stress, atol=1e-7)


def test_a_structure_keeps_what_models_read():
    """Constraints, charge, numbers of the user's own; forces of zero on fixed atoms are no labels."""
    atoms = labelled(cluster(0, 3), 1.0, np.array([[0.0, 0, 0], [0, 0, 0], [1, 0, 0]]), charge=2, head=3)
    atoms.set_constraint(FixAtoms([0]))
    data = Batches([atoms, labelled(cluster(1, 3), 2.0, head=1)], extras="head").prepare(HARMONIC)
    (item,) = data.in_order()
    batch = item.to_batch()
    assert batch["head"].tolist() == [3, 1]
    assert batch.charge.tolist() == [2, 0]
    assert np.isnan(batch.forces).all(axis=1).tolist() == [True, False, False, True, True, True]
    assert batch.name_of(1).startswith("structure 1")


# -- neighbors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(zoo()))
def test_neighbors_are_those_of_ase(name):
    atoms = zoo()[name]
    found = neighbor_rows(atoms.positions, atoms.cell.array, atoms.pbc, Requirements(5.0, 0.0))
    n = len(atoms)
    i, k = np.nonzero(found.index >= 0)
    j = found.index[i, k]
    images = np.maximum(j - n, 0)
    inside = j < n
    source = np.where(inside, j, found.source[images] if len(found.source) else 0)
    shift = np.where(inside[:, None], found.wrap[source], found.shift[images] if len(found.shift) else 0)
    d = atoms.positions[source] + shift @ atoms.cell.array
    d -= atoms.positions[i] + found.wrap[i] @ atoms.cell.array
    near = np.linalg.norm(d, axis=1) <= 5.0
    a, b, vectors = neighbor_list("ijD", atoms, 5.0)
    mine = sorted(map(tuple, np.round(np.c_[i, source, d][near], 6) + 0.0))
    assert mine == sorted(map(tuple, np.round(np.c_[a, b, vectors], 6) + 0.0))


@pytest.mark.cheap_xla
def test_results_are_those_of_the_models_own_list():
    """Pairs and edges of each structure of every geometry, by `evaluate`, and in batches from the data."""
    extra = {"reverse_edges": True, "inner_cutoff": 4.0}
    graph = GraphFunctionModel(bonds, {"k": 0.1}, cutoff=5.0, **extra)
    model = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=6.0) + graph
    atoms = [a for a in zoo().values() if len(a) < 20]
    expected = evaluate(model, atoms).to_ase()
    data = Batches(expected, max_systems=3, buckets=2).fit_to(model, Loss(energy=1.0, forces=1.0, stress=1.0))
    run = eqx.filter_jit(lambda item: errors(found(model, *item.unpack()), item.unpack()[0], NAMES))
    totals = [run(item) for item in data.in_order()]
    for name in NAMES:
        assert max(float(t[name].absolute) for t in totals) < 1e-9, name
    assert sum(int(t["energy"].count) for t in totals) == len(atoms)
    assert sum(int(t["forces"].count) for t in totals) == 3 * sum(map(len, atoms))


NAMES = ("energy", "forces", "stress")


def found(model, batch, neighbors):
    return model.evaluate(batch, neighbors, stress=True)


# -- order -------------------------------------------------------------------------------------------


def order(batches):
    return [item.ids[item.ids >= 0].tolist() for item in batches]


def test_each_structure_once_in_an_order_by_key_and_epoch():
    """Also from any position on, and with or without a thread: what a resumed training goes on with."""
    data = Batches(some(23), max_systems=4, buckets=3).prepare(HARMONIC)
    first = order(data.epoch(KEY, 5))
    assert len(first) == len(data)
    assert sorted(itertools.chain(*first)) == list(range(23))
    assert sorted(itertools.chain(*order(data.in_order()))) == list(range(23))
    for start in range(len(data) + 1):
        assert order(data.epoch(KEY, 5, start)) == first[start:]
    again = Batches(some(23), max_systems=4, buckets=3, ahead=0).prepare(HARMONIC)
    assert order(again.epoch(KEY, 5)) == first
    assert order(data.epoch(KEY, 6)) != first
    assert order(data.epoch(jax.random.key(1), 5)) != first
    assert order(data.epoch(jax.random.PRNGKey(0), 5)) == first


def test_batches_keep_to_their_budgets_and_few_shapes():
    sizes = np.random.default_rng(0).integers(2, 14, 60)
    atoms = [labelled(cluster(i, int(n)), 0.0) for i, n in enumerate(sizes)]
    model = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=6.0)
    for given in ({"max_atoms": 30}, {"max_edges": 300}, {"max_systems": 5, "buckets": 2}):
        data = Batches(atoms, **{"max_systems": 100, **given}).prepare(model)
        items = list(data.in_order())
        for item in items:
            mine = [atoms[i] for i in item.ids if i >= 0]
            assert sum(map(len, mine)) <= given.get("max_atoms", 10**6)
            assert sum(len(neighbor_list("i", a, 6.0)) for a in mine) <= given.get("max_edges", 10**6)
            assert len(mine) <= given.get("max_systems", 100)
        assert {item.layout for item in items} == set(data.layouts)
        assert len(data.layouts) <= given.get("buckets", 4)


def test_a_mixture_has_its_shares_and_its_order():
    sources = [some(40), some(40, 1)]
    for source, name in zip(sources, "ab", strict=True):
        for atoms in source:
            atoms.info["of"] = name
    parts = [Batches(source, max_systems=1, buckets=1) for source in sources]
    mixed = Mixture([(parts[0], 3.0), (parts[1], 1.0)], length=400).fit_to(HARMONIC, Loss(energy=1.0))
    assert len(mixed) == 400

    def seen(epoch=2, start=0):
        return [(item.meta[0].info["of"], int(item.ids[0])) for item in mixed.epoch(KEY, epoch, start)]

    first = seen()
    taken = [number for name, number in first if name == "a"]
    assert 270 < len(taken) < 330
    # A source that is used up begins again: each structure occurs as often as any other, up to one.
    counts = np.bincount(taken, minlength=40)
    assert counts.max() - counts.min() <= 1
    for start in (0, 1, 150, 399):
        assert seen(2, start) == first[start:]
    assert seen(3) != first
    assert len(Mixture([(p.prepare(HARMONIC), 1.0) for p in parts])) == 80
    assert sum(1 for _ in mixed.in_order()) == 80


# -- the thread --------------------------------------------------------------------------------------


def threads():
    return [t for t in threading.enumerate() if t.name == "alchemi_jax-prefetch"]


def test_the_thread_ends_and_its_errors_arrive():
    def three():
        yield from range(3)
        raise OSError("the disk is gone")

    items = prefetch(three(), 2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
    for depth in (0, 1, 2):
        items = prefetch(iter(range(1000)), depth)
        assert [next(items) for _ in range(5)] == list(range(5))
        items.close()
        assert not threads()
        assert list(prefetch(iter(range(100)), depth)) == list(range(100))
    # Whoever leaves a training, by an error or Ctrl-C, leaves no thread.
    data = Batches(some(9), max_systems=1, buckets=1).prepare(HARMONIC)
    with pytest.raises(KeyboardInterrupt):
        interrupt(data.epoch(KEY, 0))
    until = time.monotonic() + 5
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    assert not threads()


def interrupt(batches):
    for _ in batches:
        raise KeyboardInterrupt


# -- labels and losses -------------------------------------------------------------------------------


def test_losses_are_those_of_numpy():
    """Each kind, over the labels that there are; padding and missing labels count nowhere."""
    rng = np.random.default_rng(0)
    atoms = [labelled(cluster(i, 3), -i, rng.normal(0, 1, (3, 3))) for i in range(2)]
    atoms[1].calc.results["forces"][1] = np.nan
    (item,) = Batches(atoms, max_systems=3).prepare(HARMONIC).in_order()
    batch = item.to_batch()
    results = Results(jnp.asarray([0.5, -3.0]), jnp.asarray(rng.normal(0, 1, batch.forces.shape)), None)
    e = (np.array([0.5, -3.0]) - [0, -1]) / 3
    f = np.asarray(results.forces - batch.forces)[np.isfinite(batch.forces)]
    assert f.size == 15

    def huber(x, d):
        return np.where(abs(x) <= d, x**2 / 2, d * (abs(x) - d / 2))

    for kind, by_numpy in (
        ("mse", lambda x, d: x**2),
        ("mae", lambda x, d: abs(x)),
        ("huber", huber),
    ):
        loss = Loss(
            energy=2.0, forces=lambda step: 0.5 * step, kind=kind, delta={"energy": 0.3, "forces": 0.7}
        )
        total, parts = loss(results, batch, 4)
        expected = {"energy": by_numpy(e, 0.3).mean(), "forces": by_numpy(f, 0.7).mean()}
        for name, value in expected.items():
            np.testing.assert_allclose(parts[name], value, err_msg=f"{kind} {name}")
        np.testing.assert_allclose(total, 2 * expected["energy"] + 2 * expected["forces"])
    sums = errors(results, batch)
    np.testing.assert_allclose(sums["energy"].mae, abs(e).mean())
    np.testing.assert_allclose((sums["forces"] + sums["forces"]).rmse, np.sqrt((f**2).mean()))


@pytest.mark.cheap_xla
def test_a_label_that_is_missing_trains_nothing():
    """The gradient is that of data without the label; with none at all it is zero."""
    rng = np.random.default_rng(0)
    model = LennardJones(epsilon=0.02, sigma=3.0, cutoff=6.0)
    whole = evaluate(LennardJones(epsilon=0.0104, sigma=3.4, cutoff=6.0), [cluster(i, 4) for i in range(3)])
    atoms = whole.to_ase()
    item = next(iter(Batches(atoms, max_systems=3).fit_to(model).in_order()))

    @eqx.filter_jit
    def gradient(floats, loss):
        batch, neighbors = eqx.tree_at(lambda i: i.floats, item, floats).unpack()
        return eqx.filter_grad(lambda m: loss(m.evaluate(batch, neighbors), batch)[0])(model)

    # The columns of a row in which energy and forces stand.
    n, at = item.layout.atoms, {}
    begin = 0
    for name, shape in item.layout.floats:
        at[name] = slice(begin, begin + int(np.prod(shape)))
        begin = at[name].stop
    loss = Loss(energy=1.0, forces=1.0, kind="mse")
    holes = np.array(item.floats)
    holes[1, at["energy"]] = np.nan
    gone = rng.random((3, 3 * n)) < 0.3
    holes[:, at["forces"]][gone] = np.nan
    found = gradient(holes, loss)
    assert np.isfinite(found.sigma)

    def by_hand(m):
        """Means over the labels that are left."""
        batch, neighbors = item.unpack()
        results = m.evaluate(batch, neighbors)
        e = (results.energy - batch.energy) / 4
        f = (results.forces - batch.forces).reshape(3, -1)
        return (e[0] ** 2 + e[2] ** 2) / 2 + jnp.sum(f**2 * ~gone) / (~gone).sum()

    expected = eqx.filter_jit(eqx.filter_grad(by_hand))(model)
    for name in ("epsilon", "sigma"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10)
    holes[:, at["energy"]] = holes[:, at["forces"]] = np.nan
    nothing = gradient(holes, loss)
    assert (float(nothing.epsilon), float(nothing.sigma)) == (0, 0)


# -- statistics --------------------------------------------------------------------------------------


def alloys(n=12, seed=0, **energies):
    """Clusters of several elements with energies that are sums of those of the elements."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        symbols = rng.choice(list(energies), 4)
        energy = sum(energies[s] for s in symbols)
        atoms = Atoms(symbols, cluster(i, 4).positions)
        out.append(labelled(atoms, energy, rng.normal(0, 2.0, (4, 3))))
    return out


def test_energies_of_elements_and_the_scale_of_forces():
    truth = {"Cu": -3.5, "Ni": -4.25, "O": -430.0}
    data = Batches([*alloys(**truth), cluster(0, 3)])
    assert fit_element_energies(data) == pytest.approx(truth, abs=1e-9)
    # One compound alone does not tell them apart: the smallest energies that fit.
    water = Batches([labelled(Atoms("OHH", cluster(i, 3).positions), -9.0) for i in range(3)])
    assert fit_element_energies(water.structures) == fit_element_energies(water)
    assert fit_element_energies(water) == pytest.approx({"H": -3.6, "O": -1.8}, abs=1e-9)
    assert 1.7 < force_scale(data) < 2.3
    assert force_scale(water) == 1.0
    half = Mixture([(Batches(alloys(6, **truth)), 1.0), (Batches(alloys(6, 1, **truth)), 2.0)])
    assert fit_element_energies(half) == pytest.approx(truth, abs=1e-9)


@pytest.mark.cheap_xla
def test_a_network_is_prepared_for_data():
    """Features have mean zero and spread one for each element; the energies are those of the elements."""
    atoms = alloys(20, Cu=-3.5, Ni=-4.25)
    data = Batches(atoms, max_systems=20, buckets=1)
    network = network_for(data.structures, key=KEY, gaussians=6, hidden=(3,), cutoff=5.0)
    assert network.elements == ("Ni", "Cu")
    np.testing.assert_allclose(network.energies, [-4.25, -3.5])
    (item,) = data.prepare(network).in_order()
    rows, numbers = eqx.filter_jit(lambda: (network.features(*item.unpack()), item.unpack()[0].numbers))()
    mean, spread = np.asarray(network.mean), np.asarray(network.spread)
    for k, z in enumerate((28, 29)):
        mine = (np.asarray(rows)[np.asarray(numbers) == z] - mean[k]) / spread[k]
        np.testing.assert_allclose(mine.mean(axis=0), 0, atol=1e-9)
        there = mine.std(axis=0) > 0.1
        np.testing.assert_allclose(mine.std(axis=0)[there], 1, atol=1e-9)
        assert there.any()


def test_large_energies_are_not_rounded_in_silence():
    """Those of all-electron codes lose what is to be learned in single precision; subtracting comes first."""
    rest = np.random.default_rng(0).normal(0, 0.01, 12)
    atoms = alloys(12, Cu=-45000.0, Ni=-41000.0)
    for one, more in zip(atoms, rest, strict=True):
        one.calc.results["energy"] += more
    loss = Loss(energy=1.0)
    with pytest.raises(
        ValueError, match=r"has an energy of -1.* eV, of which float32 loses .* meV per atom: "
    ):
        Batches(atoms, dtype="float32").fit_to(HARMONIC, loss)
    Batches(atoms, dtype="float32").fit_to(HARMONIC, Loss(forces=1.0))
    Batches(atoms, dtype="float64").fit_to(HARMONIC, loss)
    with pytest.raises(ValueError, match="of which float32 loses"):
        Mixture([(Batches(atoms, dtype="float32"), 1.0)]).fit_to(HARMONIC, loss)
    fitted = Batches(atoms, dtype="float32", subtract="fit")
    assert fitted.subtracted == pytest.approx({"Cu": -45000.0, "Ni": -41000.0}, abs=0.1)
    given = Batches(atoms, dtype="float32", subtract={"Cu": -45000.0, "Ni": -41000.0}).fit_to(HARMONIC, loss)
    values = {
        int(i): float(e) for b in given.in_order() for i, e in zip(b.ids, b.to_batch().energy, strict=False)
    }
    np.testing.assert_allclose([values[i] for i in range(12)], rest, atol=1e-8)
    # What is learned without and validated with them, or by others, would be another energy.
    trainer = Trainer(HARMONIC, Loss(forces=1.0), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"validation of Trainer\.run has other energies of elements subtr"):
        trainer.run(fitted, 1, validation=Batches(atoms, dtype="float32", subtract={"Cu": 0.0, "Ni": 0.0}))


# -- mistakes ----------------------------------------------------------------------------------------


def broken(**results):
    return [labelled(cluster(0, 3), **results)]


class Magnetic(HarmonicModel):
    """As CHGNet, which gives the sizes of magnetic moments."""

    extra_results = {"magmoms": "atom"}  # noqa: RUF012
    never_negative = ("magmoms",)


LJ = LennardJones(epsilon={"Ar": 0.01}, sigma={"Ar": 3.4}, cutoff=6.0)
MISTAKES = {
    "nothing": (lambda: Batches([]), "the list of structures holds no structures, so there is nothing to"),
    "a number": (
        lambda: Batches(3),
        "data to train on are ASE structures or a list of them, a path, .* not the",
    ),
    "no structure": (lambda: Batches([cluster(0, 2), 3]), "entry 1 is the number 3"),
    "no file": (lambda: Batches("nowhere.xyz"), "nowhere.xyz"),
    "an infinite energy": (
        lambda: Batches(broken(energy=np.inf)),
        r"structure 0 \(Ar3\): its energy is infin",
    ),
    "infinite forces": (
        lambda: Batches(broken(energy=0.0, forces=np.full((3, 3), np.inf))),
        "its forces is infinite: correct it, or give NaN for no label",
    ),
    "no labels at all": (
        lambda: Batches([cluster(0, 3)]).fit_to(LJ, Loss(energy=1.0)),
        "no structure of the list of structures has a label 'energy', which the loss asks for; .* no label",
    ),
    "no stress anywhere": (
        lambda: Batches(broken(energy=0.0)).fit_to(LJ, Loss(energy=1.0, stress=1.0)),
        "has a label 'stress', which the loss asks for; they have energy",
    ),
    "no label in a mixture": (
        lambda: Mixture([(broken(energy=0.0), 1.0)]).fit_to(LJ, Loss(forces=1.0)),
        "no structure of any source of the Mixture has a label 'forces'",
    ),
    "no result of the model": (
        lambda: Batches(broken(energy=0.0)).fit_to(LJ, Loss(magmoms=1.0)),
        "the loss has a weight for 'magmoms', but LennardJones gives only energy, forces, stress",
    ),
    "a size below zero": (
        lambda: Batches(broken(magmoms=[np.nan, 1.0, -2.5])).fit_to(
            Magnetic() + HarmonicModel(), Loss(magmoms=1.0)
        ),
        r"structure 0 \(Ar3\): its magmoms of atom 2 is -2.5, and SumModel gives sizes: make the la",
    ),
    "another element": (
        lambda: Batches([labelled(Atoms("Kr"), 0.0)]).fit_to(LJ, Loss(energy=1.0)),
        "structure 0 .*Kr",
    ),
    "too large for the budget": (
        lambda: Batches(broken(energy=0.0), max_atoms=2).fit_to(LJ),
        r"structure 0 \(Ar3\) has 3 atoms, more than max_atoms=2 of a batch",
    ),
    "not fitted": (lambda: len(Batches(broken(energy=0.0))), "has no neighbors yet: call fit_to"),
    "no such extra": (
        lambda: Batches(broken(energy=0.0), extras="head").fit_to(LJ),
        "has no 'head' in arrays or info, which extras names",
    ),
    "no energy to subtract": (
        lambda: Batches(broken(energy=0.0), subtract={"Kr": 1.0}),
        r"structure 0 \(Ar3\) has Ar, of which subtract has no energy",
    ),
    "no energies to fit": (
        lambda: Batches([cluster(0, 3)], subtract="fit"),
        "energies of elements need structures with energies, there are none",
    ),
    "subtract a number": (lambda: Batches(broken(energy=0.0), subtract=3), 'subtract must be "fit" or energ'),
    "subtract nonsense": (
        lambda: Batches(broken(energy=0.0), subtract={"Ar": np.nan}),
        "subtract has 'Ar': nan, which is no energy of an element",
    ),
    "no weights": (lambda: Loss(), "Loss needs a weight"),
    "a negative weight": (lambda: Loss(energy=-1.0), "weight of energy must be"),
    "another kind": (lambda: Loss(energy=1.0, kind="l2"), "kind must be one of mse, mae, huber, not 'l2'"),
    "a kind without a weight": (lambda: Loss(energy=1.0, kind={"force": "mse"}), "kind names 'force', which"),
    "no parts": (lambda: Mixture([]), "Mixture needs at least one pair"),
    "a weight of zero": (
        lambda: Mixture([(broken(energy=0.0), 0.0)]),
        "weights of a Mixture must be positive",
    ),
    "stress without a cell": (
        lambda: Batches(broken(energy=0.0, stress=np.ones(6))).fit_to(LJ, Loss(stress=1.0)),
        "has a label 'stress', which the loss asks for; they have energy",
    ),
    "another zero of energy in a mixture": (
        lambda: Mixture(
            [(Batches(broken(energy=0.0), subtract={"Ar": 1.0}), 1.0), (broken(energy=0.0), 1.0)]
        ),
        r"in the Mixture has other energies of elements subtracted \(none\) than .* \(Ar 1 eV\)",
    ),
    "a mixture of mixtures": (
        lambda: Mixture([(Mixture([(broken(energy=0.0), 1.0)]), 1.0)]),
        "sources of a Mixture must be Batches, or what they are made of, not",
    ),
    "no pairs": (
        lambda: Mixture([broken(energy=0.0)]),
        "parts of a Mixture must be pairs of Batches and wei",
    ),
    "no systems": (lambda: Batches(broken(energy=0.0), max_systems=0), "max_systems"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes_are_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert not list(Path(tmp_path).iterdir())
