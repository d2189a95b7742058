"""Analysis against cases that are known exactly."""

import builtins
import importlib.util

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from conftest import crystal
from scipy.signal import lfilter

from alchemi_jax import analysis
from alchemi_jax.analysis import (
    block_average,
    mean_squared_displacement,
    radial_distribution_function,
    unwrap,
    velocity_autocorrelation,
)


def test_an_ideal_gas_has_no_structure():
    """g = 1 - 1/N everywhere, in a skewed cell smaller than r_max, within its own noise."""
    rng = np.random.default_rng(0)
    cell = np.array([[9.0, 0, 0], [3, 8, 0], [-2, 3, 10]])
    gas = [Atoms("Ar40", scaled_positions=rng.random((40, 3)), cell=cell, pbc=True) for _ in range(60)]
    r, g = radial_distribution_function(gas, r_max=7.0, bins=14)
    np.testing.assert_allclose(r, np.arange(14) * 0.5 + 0.25)
    shells = 4 / 3 * np.pi * np.diff(np.linspace(0, 7, 15) ** 3)
    pairs = 60 * 40 * 39 / np.linalg.det(cell) * shells
    # A pair is counted twice.
    assert (np.abs(g / (1 - 1 / 40) - 1) < 4.5 * np.sqrt(2 / pairs)).all()


def test_shells_of_crystals_are_counted_exactly():
    """g times shell times density is the number of neighbors: 12 and 6 in fcc, 8 and 6 in CsCl."""

    def within(atoms, r_max, species=None):
        g = radial_distribution_function(atoms, r_max, 50, species).g
        edges = np.linspace(0, r_max, 51)
        second = len(atoms) if species is None else (atoms.symbols == species[1]).sum()
        return (g * 4 / 3 * np.pi * np.diff(edges**3)).sum() * second / atoms.get_volume()

    for atoms in (bulk("Ar", "fcc", a=4.0), bulk("Ar", "fcc", a=4.0, cubic=True).repeat(2)):
        assert within(atoms, 3.5) == pytest.approx(12)
        assert within(atoms, 4.5) == pytest.approx(18)
    salt = bulk("CsCl", "cesiumchloride", a=4.0).repeat((2, 1, 1))
    assert within(salt, 3.9) == pytest.approx(8)
    assert within(salt, 3.9, ("Cs", "Cl")) == pytest.approx(8)
    assert within(salt, 4.1, ("Cs", "Cs")) == pytest.approx(6)


def test_structures_of_different_sizes_are_weighed_by_their_pairs():
    a, b = crystal(0, 1), crystal(1, 2)
    both = radial_distribution_function([a, b], 6.0, 20).g
    density = [len(x) ** 2 / x.get_volume() for x in (a, b)]
    alone = [radial_distribution_function(x, 6.0, 20).g for x in (a, b)]
    np.testing.assert_allclose(both, np.average(alone, axis=0, weights=density))


def test_without_matscipy_ase_finds_the_same_pairs(monkeypatch):
    wanted = radial_distribution_function(crystal(0, 1), 6.0, 30).g
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matscipy"):
            raise ImportError
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    spec = importlib.util.spec_from_file_location("analysis_without", analysis.__file__)
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    monkeypatch.undo()
    np.testing.assert_array_equal(other.radial_distribution_function(crystal(0, 1), 6.0, 30).g, wanted)


def test_ballistic_motion():
    """Displacement v t, whatever the origin; velocities never forget."""
    rng = np.random.default_rng(0)
    v = rng.normal(size=(7, 3))
    t = np.arange(40) * 0.5
    x = 1e3 * rng.normal(size=(7, 3)) + v * t[:, None, None]
    squared = (v**2).sum(axis=1).mean()
    np.testing.assert_allclose(mean_squared_displacement(x), squared * t**2, rtol=1e-9, atol=1e-9)
    correlation = velocity_autocorrelation(np.broadcast_to(v, (40, 7, 3)))
    np.testing.assert_allclose(correlation, squared, rtol=1e-12)


@pytest.mark.parametrize("frames", [1, 2, 17, 64])
def test_fourier_transforms_give_the_sums_of_the_definitions(frames):
    x = np.cumsum(np.random.default_rng(frames).normal(size=(frames, 5, 3)), axis=0)
    msd, vacf = mean_squared_displacement(x), velocity_autocorrelation(x)
    for lag in range(frames):
        a, b = x[: frames - lag], x[lag:]
        assert msd[lag] == pytest.approx(((b - a) ** 2).sum(-1).mean(), abs=1e-10)
        assert vacf[lag] == pytest.approx((a * b).sum(-1).mean(), abs=1e-9)
    np.testing.assert_allclose(velocity_autocorrelation(x, normalize=True), vacf / vacf[0])


def test_unwrapping_undoes_wrapping():
    rng = np.random.default_rng(1)
    cell = np.array([[9.0, 0, 0], [3, 8, 0], [-2, 3, 10]])
    x = np.cumsum(rng.normal(0, 0.8, (200, 6, 3)), axis=0)
    scaled = x @ np.linalg.inv(cell)
    for pbc in ((True, True, True), (True, False, True)):
        wrapped = (scaled - np.floor(scaled) * np.array(pbc)) @ cell
        back = unwrap(wrapped, cell, pbc)
        np.testing.assert_allclose(back - back[0], x - x[0], atol=1e-9)
    assert np.abs(wrapped - x).max() > 5


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_error_of_an_autoregressive_process(phi):
    """x' = phi x + noise: the variance of a mean of n is var (1 + phi)/(1 - phi)/n, for long series."""
    rng = np.random.default_rng(3)
    n, errors, means = 1 << 14, [], []
    for _ in range(40):
        noise = rng.normal(size=n)
        noise[0] /= np.sqrt(1 - phi**2)
        x = lfilter([1.0], [1.0, -phi], noise)
        mean, error, converged = block_average(5 + x)
        assert converged
        errors.append(error)
        means.append(mean)
    exact = np.sqrt(1 / (1 - phi**2) * (1 + phi) / (1 - phi) / n)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(exact, rel=0.08)
    assert np.std(means) == pytest.approx(exact, rel=0.4)
    assert np.mean(np.abs(np.array(means) - 5) < 2 * np.array(errors)) > 0.8


def test_a_series_that_is_too_short_says_so():
    drift = block_average(np.arange(64.0))
    assert not drift.converged
    assert drift.error > 5
    assert str(drift).endswith("(at least)")
    one = block_average([3.0])
    assert (one.mean, one.converged) == (3.0, False)
    assert np.isnan(one.error)
    assert block_average(np.full(50, 0.1)) == (pytest.approx(0.1), pytest.approx(0, abs=1e-15), True)


def test_refusals():
    for call, sentence in (
        (lambda: radial_distribution_function(Atoms("Ar")), "Structure 0 is not periodic"),
        (lambda: radial_distribution_function([]), "no structures"),
        (lambda: radial_distribution_function(crystal(), species=("Ar", "He")), "both Ar and He"),
        (lambda: radial_distribution_function(crystal(), species=("Ar", "Foo")), "'Foo' is no element"),
        (lambda: radial_distribution_function(crystal(), -1), "r_max and bins must be positive"),
        (lambda: mean_squared_displacement(np.zeros((4, 3))), r"must be \[frames, atoms, 3\]"),
        (lambda: velocity_autocorrelation(np.zeros((0, 2, 3))), r"must be \[frames, atoms, 3\]"),
        (lambda: block_average([]), "at least one sample"),
        (lambda: block_average([1.0, np.nan]), "number 1 is nan"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
