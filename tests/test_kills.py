"""The file layer is killed at every change of a file, and goes on: nothing is lost, double or left over."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from kill_cases import CASES


TESTS = Path(__file__).parent
#: Cases that take longer: the same stores in other forms.
LONG = ("shards", "wide", "zarr-forked")


@pytest.fixture
def folder(tmp_path):
    """In memory, where a hundred thousand small files are no work for the system."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([name for name in CASES if name not in LONG], id="all"),
        *(pytest.param([name], id=name, marks=pytest.mark.long) for name in LONG),
    ],
)
def test_killed_at_every_change_of_a_file(folder, names):
    """One process for all of them, without a backend of JAX: forking is then fast and safe."""
    paths = [str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = subprocess.run(
        [sys.executable, str(TESTS / "kill_cases.py"), str(folder), *names],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    kills = dict(re.findall(r"^(.*): (\d+) kills$", found.stdout, re.MULTILINE))
    assert list(kills) == names
    assert all(int(n) >= 10 for n in kills.values()), kills
