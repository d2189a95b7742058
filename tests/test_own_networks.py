"""Models of functions, graph networks of users, committees: the laws, and what is said about mistakes."""

import dataclasses
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from transform_cases import arrays_equal, bonds, trap

import alchemi_jax
from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, Sampler
from alchemi_jax.dynamics.hooks import LoggingHook, SnapshotHook, UncertaintyHook
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.errors import UserCodeError
from alchemi_jax.models import (
    AbstractGraphModel,
    CHGNet,
    CommitteeModel,
    FunctionModel,
    GraphFunctionModel,
    HarmonicModel,
    LennardJones,
    evaluate,
)
from alchemi_jax.neighbors import allocate
from alchemi_jax.systems.outcome import Outcome


PAGE = Path(alchemi_jax.__file__).parent.parent / "docs" / "howto" / "own_network.md"
DIMER = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 3.0]])
TRIMER = Atoms("Ar3", positions=[[0, 0, 0], [0, 0, 3.0], [0, 3.0, 0]])


def soft(k):
    return GraphFunctionModel(bonds, {"k": k}, cutoff=5.0)


# -- functions ---------------------------------------------------------------------------------------


def test_parameters_are_leaves_with_gradients_and_lanes():
    """New values do not compile again; numbers of Python and numpy are leaves."""
    batch = Batch.from_ase([DIMER, TRIMER])
    model = soft(0.1)
    neighbors = allocate(batch, model.requirements)
    traced = []

    @jax.jit
    def energy(model):
        traced.append(1)
        return model.energy(batch, neighbors)

    one, two = energy(model), energy(soft(0.2))
    energy(dataclasses.replace(model, params={"k": np.float64(0.3)}))
    assert len(traced) == 1
    np.testing.assert_allclose(two, 2 * one)
    slope = jax.jit(jax.grad(lambda m: m.energy(batch, neighbors).sum()))(model)
    np.testing.assert_allclose(slope.params["k"], one.sum() / 0.1)
    lanes = jax.jit(jax.vmap(lambda k: dataclasses.replace(model, params={"k": k}).energy(batch, neighbors)))
    np.testing.assert_allclose(lanes(jnp.array([0.1, 0.2])), [one, two])


def test_a_function_of_a_batch_has_no_list_unless_it_has_a_cutoff():
    seen = []

    def energy(params, batch, neighbors):
        seen.append(neighbors)
        return trap(params, batch, neighbors)

    evaluate(FunctionModel(energy, {"k": 1.0}), DIMER, stress=False)
    assert seen.pop() is None
    assert FunctionModel(energy).requirements.cutoff is None
    assert FunctionModel(energy, cutoff=4.0).requirements.cutoff == 4.0


def test_what_a_graph_function_asks_for_is_in_its_graph():
    """And elements give places in a table, and refuse others."""
    model = GraphFunctionModel(
        bonds,
        None,
        cutoff=4.0,
        elements=("H", 18),
        inner_cutoff=3.5,
        long_cutoff=6.0,
        reverse_edges=True,
        per_atom=True,
    )
    batch = Batch.from_ase([DIMER])
    graph = model.make_graph(batch)
    assert graph.species[:2].tolist() == [1, 1]
    assert None not in (graph.triplets, graph.long_edges, graph.reverse, graph.per_atom)
    with pytest.raises(ValueError, match="GraphFunctionModel has no parameters for Xe"):
        evaluate(model, Atoms("Xe"))


# -- mistakes ------------------------------------------------------------------------------------------


class Sometimes(AbstractGraphModel):
    """Right for batches of one size, wrong for others."""

    wrong: str = eqx.field(static=True)
    cutoff: float = 5.0

    def node_energies(self, graph):
        energies = bonds({"k": 0.1}, graph)
        if graph.numbers.shape[0] == 2:
            return energies
        if self.wrong == "shape":
            return energies[:, None]
        if self.wrong == "number":
            return energies.sum()
        return (1000 * energies).astype(int) if self.wrong == "dtype" else energies + jnp.nan


def batch_of(*structures):
    """Without padding, so that batches differ in shape."""
    n = sum(map(len, structures))
    return Batch.from_ase(list(structures), atom_capacity=n, system_capacity=len(structures))


@pytest.mark.parametrize("wrong", ["shape", "number", "dtype"])
def test_a_graph_model_that_is_wrong_for_the_second_batch(wrong):
    """One sentence with the model, what it returned, and the line; in `evaluate` and in an engine."""
    model = Sometimes(wrong=wrong)
    right = batch_of(DIMER)
    jax.eval_shape(lambda n: model.evaluate(right, n), allocate(right, model.requirements))
    engine = NVE(model, dt=1.0)
    for call in (lambda b: evaluate(model, b), lambda b: engine.init(b)):
        with pytest.raises(UserCodeError) as caught:
            call(batch_of(TRIMER))
        message = str(caught.value)
        assert re.match(r"Sometimes\.node_energies returned (float|int)64\[.*\]; it must be floats", message)
        assert "(3,), the energy of each atom" in message
        assert "test_own_networks.py" in message
        assert "\n" not in message


def test_a_graph_model_that_returns_nan_for_the_second_batch():
    model = Sometimes(wrong="nan")
    engine = NVE(model, dt=1.0, n_steps=2)
    with pytest.warns(RuntimeWarning, match=r"Sometimes: the energy of 1 of 1 systems is not finite"):
        evaluate(model, batch_of(TRIMER))
    with pytest.warns(RuntimeWarning, match=r"failed .*its energy is not finite in Sometimes"):
        out = engine.run(batch_of(TRIMER))
    assert out.failed.all()


def test_forces_that_are_not_finite_are_said_too():
    """Where the energy is: the norm of a vector of zeros."""

    def energy(params, batch, neighbors):
        return jnp.sqrt(trap({"k": 1.0}, batch, None))

    origin = Atoms("Ar", positions=[[0, 0, 0]])
    with pytest.warns(RuntimeWarning, match=r"FunctionModel: the forces of 1 of 1 systems are not finite"):
        evaluate(FunctionModel(energy), origin, stress=False)


def test_a_wrong_function_is_named_with_its_line():
    def energy(params, batch, neighbors):
        return batch.positions[:, 0]

    with pytest.raises(UserCodeError, match=r"FunctionModel returned energy as .*test_own_networks\.py:\d+"):
        evaluate(FunctionModel(energy), DIMER)


# -- committees ----------------------------------------------------------------------------------------


def test_a_committee_is_the_mean_of_its_members_and_says_how_they_differ():
    """In a sum, with the formulas of its docstring."""
    members = [soft(k) for k in (0.1, 0.3, 0.4)]
    batch = Batch.from_ase([DIMER, TRIMER])
    neighbors = allocate(batch, members[0].requirements)

    @eqx.filter_jit
    def results(model):
        return model.evaluate(batch, neighbors)

    found = results(CommitteeModel.of(members) + HarmonicModel(0.0))
    parts = [results(model) for model in members]
    energies, forces = (np.stack([getattr(p, name) for p in parts]) for name in ("energy", "forces"))
    np.testing.assert_allclose(found.energy, energies.mean(axis=0))
    np.testing.assert_allclose(found.forces, forces.mean(axis=0), atol=1e-14)
    atoms = np.asarray(batch.atoms_per_system)
    np.testing.assert_allclose(found.extras["energy_spread"][:2], (energies.std(axis=0) / atoms)[:2])
    norms = np.linalg.norm(forces.std(axis=0), axis=1)
    np.testing.assert_allclose(found.extras["forces_spread"], norms, atol=1e-14)
    assert norms.max() > 0


def test_members_come_out_as_they_went_in():
    members = [HarmonicModel(k) for k in (1.0, 2.0)]
    committee = CommitteeModel.of(members)
    assert committee.size == 2
    arrays_equal(committee.member(1), members[1])
    assert repr(committee).startswith("CommitteeModel(2 members, HarmonicModel(k=[1., 2.]")
    with pytest.raises(IndexError, match="member 2 of a CommitteeModel with 2"):
        committee.member(2)
    # Each member is checked as it would be alone.
    with pytest.raises(ValueError, match="no epsilon for Ar"):
        CommitteeModel.of([LennardJones({"Ne": e}, 3.4) for e in (0.1, 0.2)]).check(Batch.from_ase(DIMER))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([LennardJones(0.1, 3.4, cutoff=6.0)], r"cutoff is 5\.0 in the first and 6\.0 in number 2"),
        (
            [LennardJones(0.1, 3.4, cutoff=5.0)] * 2 + [HarmonicModel()],
            "the class is a LennardJones .* number 4",
        ),
        ([LennardJones(0.1, 3.4, cutoff=5.0, shift=True)], "shift is False in the first and True"),
    ],
)
def test_members_of_different_structure_are_refused_by_the_field(others, message):
    with pytest.raises(ValueError, match=message):
        CommitteeModel.of([LennardJones(0.1, 3.4, cutoff=5.0), *others])


def test_parameters_of_other_names_or_shapes():
    for other, message in (
        (GraphFunctionModel(bonds, {"q": 1.0}, cutoff=5.0), r"params is of \['k'\] in the first"),
        (GraphFunctionModel(bonds, {"k": np.ones(2)}, cutoff=5.0), r"params\['k'\] is float64\[\]"),
        (GraphFunctionModel(trap, {"k": 1.0}, cutoff=5.0), "function is <function bonds"),
    ):
        with pytest.raises(ValueError, match=message):
            CommitteeModel.of([soft(0.1), other])
    with pytest.raises(ValueError, match="at least one"):
        CommitteeModel.of([])
    with pytest.raises(ValueError, match="a result 'energy_spread' of their own"):
        CommitteeModel.of([CommitteeModel.of([soft(0.1)])])


def test_chgnet_is_a_member():
    """Its magnetic moments are means, beside the spreads; traced, not compiled."""
    try:
        loaded = [CHGNet.load(version) for version in ("0.3.0", "0.2.0")]
    except OSError as e:
        pytest.skip(f"no weights: {e}")
    committee = CommitteeModel.of([loaded[0], loaded[0]])
    batch = Batch.from_ase(DIMER)
    neighbors = allocate(batch, committee.requirements)
    found = eqx.filter_eval_shape(lambda m, n: m.evaluate(batch, n, stress=True), committee, neighbors)
    assert {name: x.shape for name, x in found.extras.items()} == {
        "magmoms": batch.masses.shape,
        "energy_spread": batch.energy.shape,
        "forces_spread": batch.masses.shape,
    }
    with pytest.raises(ValueError, match=r"version is '0\.3\.0' in the first and '0\.2\.0' in number 2"):
        CommitteeModel.of(loaded)


@pytest.fixture(scope="module")
def steep():
    """Two members that differ more the further an atom is from the origin: the spread is k x, k = 0.1."""
    return CommitteeModel.of([HarmonicModel(k) for k in (0.9, 1.1)])


def test_a_hook_stops_systems_whose_spread_is_too_large(steep, tmp_path):
    """In a refilled run, and spreads are in sinks and logs. The hook changes nothing else."""
    near, far = (Atoms("Ar", positions=[[0, 0, x]]) for x in (1.0, 4.0))
    sink, log = HostMemory(), tmp_path / "log.csv"
    snapshots = SnapshotHook(sink=sink, frequency=1)
    logging = LoggingHook(
        log_path=log, custom_scalars={"spread": lambda ctx: ctx.batch["energy_spread"]}, frequency=1
    )
    engine = NVE(steep, dt=1.0, n_steps=3, hooks=[UncertaintyHook(0.3), snapshots, logging])
    done = engine.run(sampler=Sampler([near, far, near, far], max_systems=2, max_atoms=2))
    order = np.argsort(np.asarray(done.system_id[:4]))
    outcomes = [Outcome(int(o)) for o in np.asarray(done.outcome)[order]]
    assert outcomes == [Outcome.OUT_OF_STEPS, Outcome.STOPPED] * 2
    assert engine.reason_text(int(done.reason[order[1]])) == "UncertaintyHook: the spread passed its limit"
    assert done.steps_taken[order].tolist() == [3, 1, 3, 1]
    frames = sink.read()
    np.testing.assert_allclose(frames["forces_spread"], np.abs(frames.positions[:, 2]) * 0.1, rtol=1e-6)
    assert "spread" in log.read_text().splitlines()[0]


def test_a_hook_marks_systems_in_its_memory(steep):
    batch = Batch.from_ase([Atoms("Ar", positions=[[0, 0, x]]) for x in (1.0, 4.0)])
    engine = NVE(steep, dt=1.0, hooks=[UncertaintyHook(0.3, action="mark")])
    state = engine.advance(engine.init(batch), 3)
    (memory,) = jax.tree.leaves(state.memory, is_leaf=lambda x: hasattr(x, "marked"))
    assert memory.marked[:2].tolist() == [False, True]
    assert memory.step[:2].tolist() == [-1, 0]
    np.testing.assert_allclose(memory.worst[:2], [0.1, 0.4], rtol=1e-3)
    assert not state.batch.outcome.any()
    with pytest.raises(ValueError, match="neither model nor batch has 'forces_spread'"):
        NVE(HarmonicModel(), dt=1.0, hooks=[UncertaintyHook(0.3)]).init(batch)


def test_the_page_on_own_networks(capsys):
    """Its models are traced, their results finite; the code of each has at most fifteen lines."""
    if not PAGE.exists():
        pytest.skip("installed without its repository")
    names, found = {}, []
    batch = Batch.from_ase([Atoms("ArKr", positions=[[0, 0, 0], [0, 0, 3.0]]), Atoms("Ar")])
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        alone = {}
        exec(block, alone)
        names |= alone
        if "model" in alone:
            found.append(alone["model"])
        code = [line for line in block.splitlines() if line and not line.startswith(("import", "from"))]
        assert len(code) <= 15 or "batch = " in block, block
    assert [type(model).__name__ for model in found] == ["FunctionModel", "GraphFunctionModel", "Net"] + [
        "GraphFunctionModel"
    ] * 2
    found.append(names["committee"])
    assert f"```text\n{capsys.readouterr().out}```" in PAGE.read_text()
    for model in found:
        model.check(batch)
        neighbors = allocate(batch, model.requirements)
        shapes = eqx.filter_eval_shape(lambda m, n: m.evaluate(batch, n), model, neighbors)
        assert shapes.forces.shape == batch.forces.shape
    assert np.isfinite(jax.tree.leaves(names["slope"])[0]).all()
