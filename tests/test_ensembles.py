"""Ensembles by `physical_validation`, in short; `python -m benchmarks.ensembles` is the long form."""

import warnings
from pathlib import Path

import numpy as np
import pytest

import alchemi_jax


if not (Path(alchemi_jax.__file__).parent.parent / "benchmarks").exists():
    pytest.skip("installed without its repository", allow_module_level=True)
with warnings.catch_warnings():
    # Of its dependencies, at import.
    warnings.simplefilter("ignore")
    pytest.importorskip("physical_validation")
    from benchmarks.ensembles import PRESSURES, TEMPERATURES, kinetic, ratio, sampled

CASES = [
    ("NVTLangevin", TEMPERATURES),
    ("NVTNoseHoover", TEMPERATURES),
    ("NVTBussi", TEMPERATURES),
    ("NPT", PRESSURES),
    ("NPT", TEMPERATURES),
    ("NPT, anisotropic", PRESSURES),
    ("NPT, flexible", PRESSURES),
]
#: Samples of each of eight replicas, and steps between them.
SHORT, LONG = (100, 50), (200, 100)
RUNS = [pytest.param(*case, *LONG, marks=pytest.mark.long) for case in CASES]
# The kinetic energies of the other thermostats have short laws of their own in test_integrators.
RUNS += [(*CASES[k], *SHORT) for k in (0, 3)]
# They run longer than they compile.
pytestmark = pytest.mark.full_xla


@pytest.mark.parametrize(("name", "states", "samples", "every"), RUNS)
def test_kinetic_energies_and_ratios_of_distributions(name, states, samples, every):
    """Mean and width of K, and the ratio of the distributions of energy or volume at two states, five
    standard errors each: were they normal, 3e-6 in a case. Samples are decorrelated first."""
    two = sampled(name, states, repeat=2, replicas=8, samples=samples, every=every)
    figures = [*np.ravel([kinetic(one) for one in two]), ratio(two)]
    assert max(figures) < 5, figures
