"""Laws and speed on the device at hand: `python -m benchmarks.gpu`, at most six minutes.

Results of the device beside the CPU's in both precisions, W1 to W8 with memory and time to compile, what
hooks cost, how busy the device is and how long it waits for the host, and peers that are installed
(TorchSim, nvalchemi-toolkit). The most important parts come first; each runs in a process of its own, laws
beside one another; each row is printed and written as it comes.

For a machine without a network: `python -m benchmarks.gpu --bring .whl` downloads, where there is one, what
a machine with Python 3.12, jax and torch lacks, the weights of CHGNet among it, and
`python3 -m benchmarks.gpu --wheels .whl` installs it there into a temporary folder first.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any


#: What the package needs beside jax, equinox, flax, optax, orbax, matplotlib and their dependencies.
NEEDED = [
    "ase",
    "zarr",
    "numcodecs",
    "donfig",
    "google-crc32c",
    "plum-dispatch",
    "beartype",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
]
#: TorchSim 0.3.0 is the last that does not need warp, a wheel of 149 MB: so is nvalchemi-toolkit left out.
PEERS = ["torch-sim-atomistic==0.3.0", "tables", "blosc2", "ndindex", "numexpr", "vesin", "vesin-torch"]
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux_2_27_x86_64",
)
ORDER = [
    *("laws", "W1", "W2", "profile", "W6", "W5", "hooks", "W8", "W4", "W3"),
    *("nvalchemi", "torchsim", "W7", "large"),
]
#: Seconds that a part may take: a peer that takes longer is cut off, with the rows that it has.
LONGEST = {"torchsim": 60.0, "nvalchemi": 60.0, "W6": 90.0, "W7": 60.0}
#: The folder of the weights of CHGNet, in a user's cache and in the folder of wheels.
WEIGHTS = Path("alchemi-jax") / "models" / "chgnet-0.4.2"


#: `laws` of `gpu_parts`, which is not imported here: JAX is for the processes of the parts.
N_LAWS = 9


def bring(folder: str, python: str) -> None:
    """Downloads the wheels for another machine."""
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        python,
        "--implementation",
        "cp",
        "-d",
        folder,
    ]
    options += [part for name in PLATFORMS for part in ("--platform", name)]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, *NEEDED, *PEERS], check=True)
    from alchemi_jax.models import chgnet_weights

    weights = Path(folder) / WEIGHTS
    weights.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copy(next(path for path in chgnet_weights.fetch() if path.name == "0.3.0.npz"), weights)
    except OSError as e:
        print(f"no weights of CHGNet, so W6 and W7 will be left out: {e}")
    files = [*Path(folder).glob("*.whl"), *weights.iterdir()]
    print(f"{sum(path.stat().st_size for path in files) / 1e6:.0f} MB of wheels and weights in {folder}")


def install(folder: str) -> str:
    """Unpacks wheels into a temporary folder, and returns it."""
    target = tempfile.mkdtemp()
    wheels = sorted(map(str, Path(folder).glob("*.whl")))
    options = ["-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=True)
    return target


def command(part: str, size: int) -> list[str]:
    """What runs a part in a process of its own."""
    if part in ("torchsim", "nvalchemi"):
        return [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu_peers", part, str(size)]
    code = (
        "import json, sys; from benchmarks.gpu_parts import PARTS\n"
        f"for row in PARTS[{part!r}]({size}): print(json.dumps(row), flush=True)"
    )
    return [sys.executable, "-W", "ignore", "-c", code]


def rows_of(part: str, size: int, seconds: float, environment: dict[str, str], take: Any) -> None:
    """Runs a part, and gives each row to `take` as it comes; a row says what went wrong."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command(part, size), stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        watch = threading.Timer(seconds, process.kill)
        watch.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                take({"part": part, **json.loads(line)})
        code = process.wait()
        watch.cancel()
        took = time.monotonic() - begun
        if code and took >= seconds:
            take({"part": part, "what": "cut off", "after_s": took})
        elif code:
            errors.seek(0)
            take({"part": part, "what": "failed", "error": errors.read()[-2000:]})
        take({"part": part, "what": "whole part", "s": took})


def expanded(part: str) -> list[str]:
    """The parts of a name that stands for many."""
    return [f"laws{k}" for k in range(N_LAWS)] if part == "laws" else [part]


def shown(value: Any) -> str:
    """A figure in a line of the table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return " ".join(f"{k} {shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " ".join(shown(v) for v in value)
    return str(value)


def machine() -> dict[str, Any]:
    """Versions and the card."""
    code = "import jax; d = jax.devices()[0]; print(d.platform, '|', d.device_kind)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    names = ("jax", "jaxlib", "numpy", "torch", "equinox")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    kind = (found.stdout.splitlines() or ["no device"])[-1]
    return {
        "python": platform.python_version(),
        "device": kind,
        "cores": os.cpu_count(),
        "versions": versions,
    }


def main() -> int:
    """Prints rows, and writes them as JSON; returns 1 if a law does not hold or a part failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--bring", metavar="FOLDER", help="only download the wheels for a machine without a network"
    )
    parser.add_argument("--python", default="3.12", help="the Python of that machine")
    parser.add_argument("--wheels", metavar="FOLDER", help="install the wheels of this folder first")
    parser.add_argument("--parts", default=",".join(ORDER), help="names, separated by commas")
    parser.add_argument("--limit", type=float, default=350.0, help="seconds in all")
    parser.add_argument("--size", type=int, default=1, help="divide systems and steps by this number")
    parser.add_argument("--out", help="a JSON file for the figures")
    args = parser.parse_args()
    if args.bring:
        bring(args.bring, args.python)
        return 0
    begun = time.monotonic()
    environment = dict(os.environ)
    # Memory as it is needed, so that the figures of memory are ours, and two processes fit.
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if "cpu" not in environment.get("JAX_PLATFORMS", "cpu"):
        # Its results are what the device's are compared with.
        environment["JAX_PLATFORMS"] += ",cpu"
    root = str(Path(__file__).resolve().parent.parent)
    target = [install(args.wheels)] if args.wheels else []
    if args.wheels and any((Path(args.wheels) / WEIGHTS).glob("*.npz")):
        environment["XDG_CACHE_HOME"] = str(Path(args.wheels).resolve())
    environment["PYTHONPATH"] = os.pathsep.join([*target, root, environment.get("PYTHONPATH", "")])
    about = {"date": date.today().isoformat(), **machine()}
    out = Path(args.out or f"benchmarks/results/{about['date']}-gpu.json")
    rows: list[dict[str, Any]] = []

    lock = threading.Lock()

    def take(row: dict[str, Any]) -> None:
        with lock:
            write(row)

    def write(row: dict[str, Any]) -> None:
        rows.append(row)
        rest = {k: v for k, v in row.items() if k not in ("part", "what", "peer", "workload", "dearest")}
        told = ", ".join(f"{k} {shown(v)}" for k, v in rest.items())
        print(f"{time.monotonic() - begun:6.0f} s  {row['part']:9} {row['what']}: {told}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")

    print(json.dumps(about), flush=True)
    for part in args.parts.split(","):
        left = args.limit - (time.monotonic() - begun)
        if left < 5:
            take({"part": part, "what": "left out", "after_s": time.monotonic() - begun})
        else:
            with ThreadPoolExecutor(N_LAWS) as pool:
                run = [
                    pool.submit(
                        rows_of, name, args.size, min(left, LONGEST.get(name, left)), environment, take
                    )
                    for name in expanded(part)
                ]
            for done in run:
                done.result()
    wrong = [r for r in rows if r.get("right") is False or r["what"] == "failed"]
    print(f"{len(wrong)} wrong" if wrong else "all laws hold", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
