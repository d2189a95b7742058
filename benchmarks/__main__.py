"""Runs workloads and the peers' scripts in turn on one core, and prints figures and ratios.

`python -m benchmarks --workloads W1 --peers ../shared/bench/run_jaxmd.py`: a peer is a script that takes
--workload, --dtype and --repeats and prints a line of JSON with `systems_per_s`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def ours(workload: str, dtype: str, repeats: int) -> dict[str, Any]:
    """In a process of its own, so that precision and memory are not another run's."""
    code = (
        "import json, jax; jax.config.update('jax_enable_x64', "
        f"{dtype == 'float64'}); from benchmarks.workloads import WORKLOADS; "
        f"print(json.dumps(WORKLOADS[{workload!r}]({dtype!r}, {repeats})))"
    )
    return last_json([sys.executable, "-c", code])


def last_json(command: list[str]) -> dict[str, Any]:
    """The last line of JSON that a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command[:2])} failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def main() -> None:
    """Prints a table; with --out also writes it as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--workloads", default="W1", help="names, separated by commas")
    parser.add_argument("--dtypes", default="float32,float64")
    parser.add_argument("--peers", nargs="*", default=[], help="scripts of the peers")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", help="a JSON file for the figures")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    results = []
    print(f"{'workload':10}{'dtype':10}{'who':22}{'systems/s':>12}{'ours / theirs':>15}")
    for workload in args.workloads.split(","):
        for dtype in args.dtypes.split(","):
            mine = ours(workload, dtype, args.repeats)
            rows = [mine]
            for peer in args.peers:
                options = ["--workload", workload, "--dtype", dtype, "--repeats", str(args.repeats)]
                rows.append(last_json([sys.executable, str(Path(peer)), *options]))
            for row in rows:
                ratio = mine["systems_per_s"] / row["systems_per_s"]
                print(
                    f"{workload:10}{dtype:10}{row['peer']:22}{row['systems_per_s']:12,.0f}{ratio:15.2f}",
                    flush=True,
                )
            results += rows
    if args.out:
        Path(args.out).write_text(
            json.dumps({"machine": machine, "versions": versions, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
