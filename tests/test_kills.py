"""The file layer is killed at every change of a file, and goes on: nothing is lost, double or left over."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kill_cases import CASES


TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", CASES)
def test_killed_at_every_change_of_a_file(tmp_path, name):
    (tmp_path / "x").mkdir()
    paths = [str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = subprocess.run(
        [sys.executable, str(TESTS / "kill_cases.py"), name, str(tmp_path / "x")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert "kills" in found.stdout
