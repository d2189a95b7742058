"""Same seed, same machine, same result: twice in a process, and in two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from determinism_program import everything, refilled


# As users compile, which the other process does, too.
@pytest.mark.full_xla
def test_the_same_bits_twice_and_in_two_processes(tmp_path):
    """Bits of results, frames and log: a refilled Langevin run, and crystals relaxed with their cells.

    The other process has other hashes of text, and finds its programs in the cache of the tests.
    """
    here = everything(tmp_path / "here")
    assert refilled(tmp_path / "again") == tuple(here[:3])
    script = Path(__file__).with_name("determinism_program.py")
    env = os.environ | {"PYTHONHASHSEED": "12345", "JAX_ENABLE_X64": "1"}
    call = [sys.executable, "-W", "error", str(script), str(tmp_path / "there")]
    done = subprocess.run(call, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == here
