"""A first potential, of copper, from data that are not in the repository; a committee of them."""

import jax
import pytest

from alchemi_jax.models import CommitteeModel


train_copper = pytest.importorskip("benchmarks.train_copper", reason="installed without its repository")
if not (train_copper.DATA / "copper_train.extxyz.gz").exists():
    pytest.skip(f"the data are not in {train_copper.DATA}", allow_module_level=True)


@pytest.mark.cheap_xla
def test_a_short_training_learns():
    """300 steps of 200 structures: 45 meV/Å, from 815 of no forces at all, and 2 meV per atom."""
    with jax.enable_x64(False):
        data, valid = train_copper.copper(structures=200)
        valid = train_copper.Batches(valid.structures[::4])
        _, model, _ = train_copper.train(data, 300)
        found = train_copper.mean_errors(model, valid)
    assert found["forces"] < 60
    assert found["energy"] < 3


@pytest.fixture(scope="module")
def committee():
    with jax.enable_x64(False):
        data, valid = train_copper.copper()
        members = [train_copper.train(data, 8000, seed)[1] for seed in range(4)]
    return CommitteeModel.of(members), members, valid


@pytest.mark.full_xla
@pytest.mark.long
def test_8000_steps_are_enough(committee):
    _, members, valid = committee
    with jax.enable_x64(False):
        for model in members:
            found = train_copper.mean_errors(model, valid)
            assert found["forces"] < 12
            assert found["energy"] < 0.5


@pytest.mark.full_xla
@pytest.mark.long
def test_a_committee_knows_where_it_is_wrong(committee):
    """By the order of structures; but of surfaces, which no structure of the data has, it is too sure."""
    model, _, valid = committee
    with jax.enable_x64(False):
        found = train_copper.judge(model, [data.to_ase() for data in valid.structures])
    assert found["validation"] >= 0.6
    assert found["with structures from outside"] >= 0.75
