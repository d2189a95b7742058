"""The benchmarks' own logic: structures are the peers', and a fallen ratio is found. No wall-clock here."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cheap_xla import cheap_environment

import alchemi_jax


ROOT = Path(alchemi_jax.__file__).parent.parent
PEERS = ROOT.parent / "shared" / "bench" / "common.py"
if not (ROOT / "benchmarks").exists():
    pytest.skip("installed without its repository", allow_module_level=True)

from benchmarks import structures  # noqa: E402
from benchmarks.__main__ import last_json, picture, regressions  # noqa: E402


def test_structures_are_those_of_the_peers():
    if not PEERS.exists():
        pytest.skip("the peers' scripts are not here")
    spec = importlib.util.spec_from_file_location("peers", PEERS)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    for a, b in zip(structures.perturbed_clusters(5), theirs.w1(5), strict=True):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-12)
    for made, peers in ((structures.crystals(2), theirs.w2(2)), (structures.large_crystal(), theirs.w3())):
        for atoms, velocities, b in zip(*made, peers, strict=True):
            np.testing.assert_allclose(atoms.positions, b.positions, atol=1e-12)
            np.testing.assert_allclose(atoms.cell.array, b.cell.array)
            np.testing.assert_allclose(velocities, b.arrays["v_A_fs"], rtol=1e-9)


def test_assorted_clusters_are_compact():
    atoms = structures.assorted_clusters(60)
    sizes = [len(a) for a in atoms]
    assert min(sizes) >= 7
    assert max(sizes) <= 55
    assert len(set(sizes)) > 25
    for a in atoms:
        d = a.get_all_distances() + 99 * np.eye(len(a))
        assert d.min(axis=1).min() > 2.4
        assert d.min(axis=1).max() < 5.0


def test_a_regression_is_a_fallen_ratio():
    def row(ratio, **more):
        return {"workload": "W2", "dtype": "float32", "peer": "lammps", "ratio": ratio, **more}

    assert regressions([row(1.0)], [row(1.2)]) == []
    assert regressions([row(0.8)], [row(1.2)]) == ["W2 float32 over lammps: 0.80, it was 1.20."]
    assert regressions([row(0.8) | {"peer": "other"}], [row(1.2)]) == []
    watched = {"workload": "W4", "peer": "alchemi_jax"}
    assert regressions([row(1.0, over_w2=1.04) | watched], [row(1.0, over_w2=1.02) | watched]) == []
    found = regressions([row(1.0, over_w2=1.2) | watched], [row(1.0, over_w2=1.02) | watched])
    assert found == ["W4 float32 over W2: 1.200, it was 1.020."]


def test_a_peer_that_fails_is_named(tmp_path):
    import sys

    assert "failed" in last_json([sys.executable, "-c", "raise SystemExit('no')"])
    assert last_json([sys.executable, "-c", "print('{\"a\": 1}')"]) == {"a": 1}
    rows = [
        {"workload": "W2", "dtype": "float32", "peer": p, "ratio": r} for p, r in (("a", 2.0), ("b", 0.5))
    ]
    picture(rows, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_sizes_of_the_same_frames(tmp_path):
    """Every format gets all frames; what is not installed is left out and said."""
    from benchmarks import sizes

    batches = sizes.frames(2, 2, "float32")
    assert [b.num_systems for b in batches] == [2, 2]
    assert batches[1].steps_taken.tolist() == [51, 51]
    found = {name: n for name, n, *_ in sizes.measured(batches)}
    least = 4 * 256 * 3 * 4
    assert all(n > least for n in found.values())
    assert {"ZarrData", "AseTrajectory (.traj)", "ExtXYZ, eight decimals"} <= set(found)


@pytest.mark.parametrize(("rounds", "left"), [(1, 0.8), pytest.param(4, 0.5, marks=pytest.mark.long)])
def test_the_fit_of_a_liquid_comes_nearer(rounds, left):
    """Epsilon and sigma from a radial distribution function: rounds from far off, a few snapshots.

    A round goes a tenth of epsilon and a fiftieth of sigma at most.
    """
    from benchmarks import fit

    _, snapshots, last = fit.liquid(0.0104, 3.40, seed=0, frames=25)
    target = fit.distribution(snapshots).mean(axis=0)
    assert target[:2].max() < 0.01
    assert 2.2 < target.max() < 3.2
    begun = np.array([0.0080, 3.20])
    found, path = fit.fit(target, begun, rounds=rounds, frames=25, last=last)
    gap = np.abs(np.log(np.stack([begun, found]) / [0.0104, 3.40]))
    assert (gap[1] < left * gap[0]).all()
    assert len(path) == rounds
    if rounds > 1:
        assert path[-1][1] < 0.3 * path[0][1]


@pytest.mark.long
def test_spread_measures_four_ways():
    """And where the batch shrinks at the end fewer places are idle."""
    from benchmarks import spread

    found = spread.measured(systems=8, places=4, dtype="float32", repeats=1)
    assert list(found) == ["fixed", "fixed, shrink", "refilled", "refilled, shrink"]
    assert found["refilled, shrink"]["occupancy"] > found["refilled"]["occupancy"]


def test_the_benchmark_of_gpus_runs_here(tmp_path):
    """One part at a small size, through the command; rows are written as they come, what fails says why."""
    out = tmp_path / "gpu.json"
    options = ["--parts", "W1,unknown", "--size", "64", "--limit", "300", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *options],
        cwd=ROOT,
        env=cheap_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    rows = json.loads(out.read_text())["rows"]
    found = {(row["part"], row["what"]): row for row in rows}
    for dtype in ("float32", "float64"):
        (row,) = [r for r in rows if r["what"] == "W1" and r["dtype"] == dtype]
        assert row["converged"] == 4
        assert row["compile_s"] > 0
    assert "KeyError: 'unknown'" in found["unknown", "failed"]["error"]
    assert "1 wrong" in done.stdout


def test_parts_of_the_benchmark_of_gpus():
    """All are named, and the device is busy while at least one event runs."""
    from benchmarks import gpu, gpu_parts

    named = [name for part in gpu.ORDER for name in gpu.expanded(part)]
    assert set(gpu_parts.PARTS) <= set(named)
    assert set(named) - set(gpu_parts.PARTS) == {"torchsim", "nvalchemi"}
    events = [(0.0, 4.0, "a"), (1.0, 2.0, "b"), (3.0, 6.0, "c"), (10.0, 11.0, "a")]
    assert gpu_parts.busy(events) == 7.0
    long = [(1e6 * begin, 1e6 * end, name) for begin, end, name in events]
    assert gpu_parts.pauses(long) == [4e6]
    assert gpu_parts.pauses(events) == []
    assert {"W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8"} <= set(gpu.ORDER)


def test_the_benchmark_of_gpus_leaves_out_what_has_no_weights(tmp_path, monkeypatch):
    """On a machine without a network."""
    from alchemi_jax.models import chgnet_weights
    from benchmarks import gpu, gpu_parts

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(chgnet_weights, "_installed", lambda version: None)
    for name in ("W6", "W7"):
        (row,) = gpu_parts.PARTS[name](1)
        assert "left out" in row["what"]
        assert "right" not in row
    assert tmp_path / gpu.WEIGHTS == chgnet_weights.folder()
