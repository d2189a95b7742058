"""`python -m benchmarks.kills --faults ../shared/faults`: a run that is killed at every change of a file.

The commands are `relax`, `md`, `run` (a pipeline), `md` of more structures than fit into the batch, and
`train`. Each is killed at the n-th change of a file in its folder, by `sitecustomize.py` in `--faults`, for
each n; killed again while it goes on, at every change of that; killed twice at numbers by a seed; and by
`kill -9` at random moments. Then it is called to the end. Results, frames and rows must be those of a run
that nobody killed, bit for bit.

Each process is forked from one that has imported everything and has not touched the devices of JAX. With
`--every k` each k-th number is tried. With `--thin` not all in a row of changes of the same kind are: where
arrays of one store are made or written one after the other, the first two and the last are. All numbers take
hours: with `--done FILE` what was tried and right is written to a file, and a later call goes on behind it.
"""

import argparse
import os
import random
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


COMMON = ["--model", "lj:epsilon=0.0104,sigma=3.4,cutoff=6.0", "--checkpoint-every", "0.2"]
PIPELINE = """
files = ["{input}"]
out = "{out}"
model = "lj:epsilon=0.0104,sigma=3.4,cutoff=6.0"
log_every = 5
save_every = 10
seed = 3
[[stages]]
kind = "relax"
fmax = 0.05
n_steps = 30
[[stages]]
kind = "md"
ensemble = "nvt"
temperature = 60.0
n_steps = 30
"""
TRAINING = """
[data]
train = ["{input}"]
validation = 0.25
max_systems = 2
[model]
kind = "invariant"
cutoff = 6.0
gaussians = 8
hidden = [8]
[run]
n_steps = 40
out = "{out}"
"""


def write_inputs(folder: Path) -> None:
    """Clusters of argon: three, and seven for the stream; and the pipeline."""
    import ase.io
    from ase.calculators.lj import LennardJones
    from ase.cluster import Icosahedron

    structures = []
    for i in range(7):
        atoms = Icosahedron("Ar", 2, latticeconstant=5.3)
        atoms.positions += np.random.default_rng(i).normal(0, 0.1, atoms.positions.shape)
        structures.append(atoms)
    ase.io.write(folder / "three.extxyz", structures[:3])
    ase.io.write(folder / "seven.extxyz", structures)
    for atoms in structures:
        atoms.calc = LennardJones(epsilon=0.0104, sigma=3.4, rc=6.0)
        atoms.get_forces()
    ase.io.write(folder / "labelled.extxyz", structures)


def commands(folder: Path) -> dict[str, Callable[[Path], list[str]]]:
    """For each kind the words of the command that writes to a folder."""
    three, seven = str(folder / "three.extxyz"), str(folder / "seven.extxyz")
    md = ["--steps", "60", "--temperature", "60", "--log-every", "5", "--save-every", "10"]

    def pipeline(out: Path) -> list[str]:
        (folder / "pipeline.toml").write_text(PIPELINE.format(input=three, out=out))
        return ["run", str(folder / "pipeline.toml"), "--checkpoint-every", "0.2"]

    def training(out: Path) -> list[str]:
        (folder / "training.toml").write_text(TRAINING.format(input=folder / "labelled.extxyz", out=out))
        return ["train", str(folder / "training.toml"), "--checkpoint-every", "0.2"]

    return {
        "relax": lambda out: ["relax", three, *COMMON, "--fmax", "0.02", "--out", str(out)],
        "md": lambda out: ["md", three, *COMMON, *md, "--out", str(out)],
        "run": pipeline,
        "train": training,
        "stream": lambda out: ["md", seven, *COMMON, *md, "--max-systems", "3", "--out", str(out)],
    }


def call(
    words: list[str],
    faults: Path,
    kill_at: int | None = None,
    kill_after: float | None = None,
    log: Path | None = None,
) -> int:
    """Run a command in a forked process; its exit code, negative for a signal.

    Args:
        log: a file for its changes of files, a line each.
    """
    if words[0] in ("run", "train"):
        lines = Path(words[1]).read_text().splitlines()
        out = next(line.split('"')[1] for line in lines if line.startswith("out"))
    else:
        out = words[words.index("--out") + 1]
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.environ["XDG_CACHE_HOME"] = str(faults.parent / "cache-of-kills")
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            if log is not None:
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                os.environ["KILL_LOG"] = "1"
                kill_at = 1 << 30
            elif not os.environ.get("KILLS_LOUD"):
                os.dup2(quiet, 2)
            if kill_at is not None:
                os.environ |= {"KILL_AT": str(kill_at), "KILL_IN": out}
                runpy.run_path(str(faults / "sitecustomize.py"))
            import jax

            # Compiling is most of the time of a call; each program is the same in all of them.
            jax.config.update("jax_compilation_cache_dir", str(faults.parent / "programs"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
            from alchemi_jax.cli.main import main

            code = main(words)
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        except BaseException as e:
            os.write(2, f"{type(e).__name__}: {e}\n".encode())
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def in_child(function: Callable[[], Any]) -> str:
    """What a function raises in a forked process, "" if nothing: the parent stays without threads."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException as e:
            os.write(write, f"{type(e).__name__}: {e}"[:2000].encode())
        finally:
            os._exit(0)
    os.close(write)
    text = b""
    while part := os.read(read, 4096):
        text += part
    os.close(read)
    os.waitpid(pid, 0)
    return text.decode(errors="replace")


def check_same(one: Path, two: Path) -> None:
    """Raise AssertionError where two folders of results differ."""
    from alchemi_jax.dynamics.sinks import ZarrData
    from alchemi_jax.io.sinks.layout import flat_fields

    texts = ("log.csv", "final.extxyz", "relaxed.extxyz", "inputs.json", "validation.csv", "report.json")
    for name in (*texts, "model/model.json", "model/arrays.npz"):
        if (one / name).exists():
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
    for name in ("finished.zarr", "relaxed.zarr", "trajectory.zarr"):
        if (one / name).exists():
            a, b = (flat_fields(ZarrData(folder / name, mode="r").read()) for folder in (one, two))
            assert a.keys() == b.keys(), name
            for field in a:
                np.testing.assert_array_equal(a[field][1], b[field][1], err_msg=f"{name}: {field}")
    found = {p.name for p in two.iterdir()}
    assert found == {p.name for p in one.iterdir()}, f"files: {sorted(found)}"


class Sweep:
    """The kills of one command."""

    def __init__(
        self,
        kind: str,
        words: Callable[[Path], list[str]],
        folder: Path,
        faults: Path,
        done: Path | None = None,
    ):
        self.kind, self.words, self.folder, self.faults = kind, words, folder, faults
        self.done = done
        self.known = set(done.read_text().splitlines()) if done is not None and done.exists() else set()
        self.reference = folder / f"{kind}-whole"
        self.out = folder / f"{kind}-killed"
        self.bad: list[str] = []
        self.tried = 0
        code = call(words(self.reference), faults)
        assert code in (0, 3), f"{kind} ends with {code}"
        self.code = code

    def changes(self, prepare: Callable[[], Any] | None = None) -> list[str]:
        """The changes of files of a call, a line each."""
        shutil.rmtree(self.out, ignore_errors=True)
        if prepare is not None:
            prepare()
        log = self.folder / "changes"
        call(self.words(self.out), self.faults, log=log)
        lines = log.read_text(errors="replace").splitlines()
        return [" ".join(line.split()[1:]) for line in lines if re.match(r"\d+ (open|os\.)", line)]

    def attempt(self, *kills: dict[str, Any]) -> None:
        """Kill the command at each of these, call it to the end, and compare."""
        name = f"{self.kind} {kills}"
        if name in self.known:
            self.tried += 1
            return
        shutil.rmtree(self.out, ignore_errors=True)
        for kill in kills:
            call(self.words(self.out), self.faults, **kill)
        self.tried += 1
        codes = [call(self.words(self.out), self.faults) for _ in range(1)]
        wrong = "" if codes[-1] == self.code else f"ends with {codes[-1]}, not {self.code}"
        wrong = wrong or in_child(lambda: check_same(self.reference, self.out))
        if wrong:
            self.bad.append(f"{name}: {wrong}")
            print(self.bad[-1][:600], flush=True)
        elif self.done is not None:
            with open(self.done, "a") as file:
                file.write(f"{name}\n")


def numbers_of(changes: list[str], every: int, thin: bool) -> list[int]:
    """The numbers of the changes to be tried, from 1."""
    kinds = [re.sub(r"(\.zarr[^/ ]*)/[^/ ]+", r"\1/*", change) for change in changes]
    kept = []
    for n in range(0, len(kinds), every):
        inside = 1 < n < len(kinds) - 1 and kinds[n - 2] == kinds[n - 1] == kinds[n] == kinds[n + 1]
        if not (thin and inside):
            kept.append(n + 1)
    return kept


def main() -> None:
    """The sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=Path, default=Path("../shared/faults"))
    parser.add_argument("--kinds", default="relax,md,run,stream,train")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--thin", action="store_true")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--random", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--done", type=Path)
    given = parser.parse_args()
    faults = given.faults.absolute()
    # Imported once, before the forks; no device is touched.
    import jax  # noqa: F401
    import orbax.checkpoint  # noqa: F401

    import alchemi_jax.cli.relax
    import alchemi_jax.cli.run
    import alchemi_jax.cli.train  # noqa: F401

    folder = Path(tempfile.mkdtemp())
    own = folder / "faults"
    shutil.copytree(faults, own)
    write_inputs(folder)
    numbers = random.Random(given.seed)
    bad, began = [], time.time()
    kinds = commands(folder)
    for kind in given.kinds.split(","):
        sweep = Sweep(kind, kinds[kind], folder, own, given.done)
        changes = sweep.changes()
        whole = len(changes)

        def half_done(sweep: Sweep = sweep, whole: int = whole) -> None:
            call(sweep.words(sweep.out), own, whole // 2)

        later = sweep.changes(half_done)
        going_on = len(later)
        first, second = (numbers_of(some, given.every, given.thin) for some in (changes, later))
        print(
            f"{kind}: {whole} changes, {going_on} while it goes on; {len(first)} and {len(second)} are tried",
            flush=True,
        )
        for n in first:
            sweep.attempt({"kill_at": n})
        for n in second:
            sweep.attempt({"kill_at": whole // 2}, {"kill_at": n})
        for _ in range(given.pairs // len(given.kinds.split(","))):
            sweep.attempt({"kill_at": numbers.randint(1, whole)}, {"kill_at": numbers.randint(1, going_on)})
        begun = time.time()
        shutil.rmtree(sweep.out, ignore_errors=True)
        call(sweep.words(sweep.out), own)
        took = time.time() - begun
        for _ in range(given.random // len(given.kinds.split(","))):
            sweep.attempt({"kill_after": numbers.uniform(0.1, took)})
        print(f"{kind}: {sweep.tried} tried, {len(sweep.bad)} wrong, {time.time() - began:.0f} s", flush=True)
        bad += sweep.bad
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
