"""Runs workloads and the peers' scripts in turn on one core, and prints figures and ratios.

`python -m benchmarks --workloads W1,W2 --peers PATH/run_jaxmd.py PATH/run_lammps.py`: a peer is a script that
takes --workload, --dtype and --repeats and prints a line of JSON; one that needs an interpreter of its own
is given as PYTHON=PATH. A peer that fails or does not know a workload is left out there and named.
`--against FILE` compares the ratios with those of a checked-in run and exits with 1 where one fell by more
than a quarter.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.workloads import DEFAULT_RATE, RATE


#: A ratio that fell below this part of the checked-in one is a regression.
TOLERANCE = 0.75
#: A script that is asked for a workload it does not know runs another one.
KNOWN = {"run_lammps": ("W2", "W3"), "run_lammps_opt": ("W2", "W3")}
PEERS_KNOW = ("W1", "W2", "W3")
KNOWN["chgnet_peer"] = ("W6", "W7")
KNOWN["many_body_lammps"] = ("W8-SW", "W8-Tersoff", "W8-EAM")


def ours(workload: str, dtype: str, repeats: int) -> dict[str, Any]:
    """In a process of its own, so that precision and memory are not another run's."""
    code = (
        "import json, jax; jax.config.update('jax_enable_x64', "
        f"{dtype == 'float64'}); from benchmarks.workloads import WORKLOADS; "
        f"print(json.dumps(WORKLOADS[{workload!r}]({dtype!r}, {repeats})))"
    )
    found = last_json([sys.executable, "-c", code])
    if "failed" in found:
        raise SystemExit(found["failed"])
    return found


def last_json(command: list[str]) -> dict[str, Any]:
    """The last line of JSON that a command prints, or what went wrong as `failed`."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"failed": f"{' '.join(command[:2])} failed:\n{done.stderr[-2000:]}"}
    return json.loads(lines[-1])


def measured(workload: str, dtype: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Ours and the peers' figures, `rounds` times in turn; rates are medians over the rounds."""
    rounds: list[list[dict[str, Any]]] = []
    for _ in range(args.rounds):
        rows = [ours(workload, dtype, args.repeats)]
        for peer in args.peers:
            interpreter, _, script = peer.rpartition("=")
            name = Path(script).stem
            if workload not in KNOWN.get(name, PEERS_KNOW):
                continue
            options = ["--workload", workload, "--dtype", dtype, "--repeats", str(args.repeats)]
            rows.append(last_json([interpreter or args.python, script, *options]))
            rows[-1].setdefault("peer", name)
        rounds.append(rows)
    key = RATE.get(workload, DEFAULT_RATE)
    out = []
    for column in zip(*rounds, strict=True):
        row = column[0]
        if not all(key in c and c.get("workload", workload) == workload for c in column):
            print(f"{workload:11}{dtype:10}{row['peer']:22} not available here", flush=True)
            continue
        pairs = [mine[0][key] / other[key] for mine, other in zip(rounds, column, strict=True)]
        row = {**row, "rate": statistics.median(c[key] for c in column), "of": key}
        out.append(row | {"ratio": statistics.median(pairs)})
    return out


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """Our rate over each peer's, by workload and precision."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [r for r in results if r["peer"] != "alchemi_jax"]
    if not rows:
        return
    figure = Figure(figsize=(7, 0.9 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labels = [f"{r['workload']} {r['dtype']}, {r['peer']}" for r in rows][::-1]
    ratios = [r["ratio"] for r in rows][::-1]
    axes.barh(labels, ratios, color=["#4878a8" if r >= 1 else "#c8794e" for r in ratios])
    for i, ratio in enumerate(ratios):
        axes.annotate(f" {ratio:.2f}", (ratio, i), va="center", fontsize=8)
    axes.axvline(1, color="0.3", lw=0.8)
    # Room for the longest bar's figure.
    axes.set_xlim(right=2.5 * max(*ratios, 1))
    axes.set(xscale="log", xlabel="rate of alchemi_jax over the peer's, one core")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)


def regressions(results: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[str]:
    """Ratios that fell against those of a run before, and overheads that grew."""
    known = {(r["workload"], r["dtype"], r["peer"]): r for r in before}
    found = []
    for row in results:
        old = known.get((row["workload"], row["dtype"], row["peer"]))
        if old is None:
            continue
        name = f"{row['workload']} {row['dtype']}"
        if row["ratio"] < TOLERANCE * old["ratio"]:
            found.append(f"{name} over {row['peer']}: {row['ratio']:.2f}, it was {old['ratio']:.2f}.")
        if "over_w2" in row and row["over_w2"] - 1 > 2 * max(old["over_w2"] - 1, 0.05):
            found.append(f"{name} over W2: {row['over_w2']:.3f}, it was {old['over_w2']:.3f}.")
    return found


def main() -> int:
    """Prints a table; with --out also writes it as JSON and as a picture beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--workloads", default="W1,W2,W3,W4,W5", help="names, separated by commas")
    parser.add_argument("--dtypes", default="float32,float64")
    parser.add_argument("--peers", nargs="*", default=[], help="scripts of the peers, or PYTHON=SCRIPT")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the peers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="ours and the peers so often in turn")
    parser.add_argument("--out", help="a JSON file for the figures")
    parser.add_argument("--against", help="the JSON file of a run before")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    results: list[dict[str, Any]] = []
    print(f"{'workload':11}{'dtype':10}{'who':22}{'rate':>14} {'unit':14}{'first s':>8}{'ours / theirs':>15}")
    for workload in args.workloads.split(","):
        for dtype in args.dtypes.split(","):
            rows = measured(workload, dtype, args)
            for row in rows:
                unit = row["of"].removesuffix("_per_s").replace("_", "-") + "/s"
                over = f"   {row['over_w2']:.3f} of W2's time" if "over_w2" in row else ""
                over += f"   {row['over_fixed']:.2f} x fixed batches" if "over_fixed" in row else ""
                print(
                    f"{workload:11}{dtype:10}{row['peer']:22}{row['rate']:14,.0f} {unit:14}"
                    f"{row['first_s']:8.1f}{row['ratio']:15.2f}{over}",
                    flush=True,
                )
            results += rows
            if args.out:
                # Each time anew, so that a run that is cut off leaves what it measured.
                text = json.dumps({"machine": machine, "versions": versions, "results": results}, indent=1)
                Path(args.out).write_text(text + "\n")
                picture(results, Path(args.out).with_suffix(".png"))
    if args.against:
        fallen = regressions(results, json.loads(Path(args.against).read_text())["results"])
        print("\n".join(fallen) if fallen else f"nothing fell against {args.against}.")
        return 1 if fallen else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
