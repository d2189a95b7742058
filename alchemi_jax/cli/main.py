"""Arguments of `alchemi-jax`, and what its exit codes mean."""

import argparse
import importlib
import sys
from typing import Any

from alchemi_jax._version import __version__
from alchemi_jax.cli.outcome import USAGE, UsageError


def parser() -> argparse.ArgumentParser:
    """The command line. Each command names the function that runs it as `module:function`, which is
    imported when it is asked for."""
    top = argparse.ArgumentParser(prog="alchemi-jax", description="Batched atomistic dynamics in JAX.")
    top.add_argument("--version", action="version", version=f"alchemi-jax {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for add in (_relax, _md, _run, _show, _convert, _info):
        add(commands)
    return top


def _relax(commands: Any) -> None:
    relax = commands.add_parser(
        "relax",
        help="relax structures, all at once",
        description="Relaxes the positions of all structures in the files, in fixed cells, with FIRE. "
        "Without files: the sample set of noble-gas clusters and crystals.",
        epilog="Exit code: 0 all converged, 2 bad usage or unreadable input, 3 not all converged.",
    )
    relax.set_defaults(run="alchemi_jax.cli.relax:relax")
    relax.add_argument("files", nargs="*", help="anything that ASE reads")
    relax.add_argument(
        "--model",
        default="lj",
        help=_MODELS,
    )
    relax.add_argument(
        "--fmax", type=float, default=0.01, help="eV/Å at which a structure has converged [0.01]"
    )
    relax.add_argument("--steps", type=int, default=1000, help="budget of steps per structure [1000]")
    relax.add_argument("--out", default="alchemi-relaxed", help="folder for the results [alchemi-relaxed]")
    relax.add_argument("--overwrite", action="store_true", help="replace results in that folder")
    relax.add_argument(
        "--dtype", choices=("float64", "float32"), default="float64", help="precision [float64]"
    )


_MODELS = (
    "lj (noble gases, the default), lj:epsilon=EV,sigma=A[,cutoff=A] for any atoms, or "
    "morse:depth=EV,width=1/A,r0=A[,cutoff=A]"
)


def _md(commands: Any) -> None:
    md = commands.add_parser(
        "md",
        help="molecular dynamics of structures, as many at once as there is room for",
        description="Molecular dynamics of all structures in the files; those at rest get velocities of the "
        "temperature. The same command again goes on with the structures that are left. "
        "Without files: the sample set.",
        epilog="Exit code: 0 all done, 2 bad usage or unreadable input, 3 some failed or did not converge.",
    )
    md.set_defaults(run="alchemi_jax.cli.run:md")
    md.add_argument("files", nargs="*", help="anything that ASE reads")
    md.add_argument("--model", default="lj", help=_MODELS)
    md.add_argument("--steps", type=int, default=1000, help="of each structure [1000]")
    md.add_argument(
        "--ensemble",
        default="nvt",
        help="nve, nvt (Langevin), nvt-nose-hoover, nvt-bussi, nph or npt [nvt]",
    )
    md.add_argument("--temperature", type=float, help="K")
    md.add_argument("--pressure", type=float, help="GPa, for nph and npt")
    md.add_argument("--friction", type=float, help="1/fs, for nvt [0.01]")
    md.add_argument("--dt", type=float, help="fs [1]")
    md.add_argument("--relax", type=float, metavar="FMAX", help="relax to this fmax first, eV/Å")
    md.add_argument("--seed", type=int, default=0, help="of velocities and noise [0]")
    md.add_argument("--max-systems", type=int, default=64, help="structures in flight [64]")
    md.add_argument("--max-atoms", type=int, help="atoms in flight [what 64 structures of mean size need]")
    md.add_argument("--log-every", type=int, default=10, help="steps between rows of log.csv [10]")
    md.add_argument(
        "--save-every", type=int, default=100, help="steps between frames of trajectory.zarr, 0: none [100]"
    )
    md.add_argument("--out", default="alchemi-md", help="folder for the results [alchemi-md]")
    md.add_argument("--overwrite", action="store_true", help="begin from scratch in that folder")
    md.add_argument("--dtype", default="float64", help="float64 or float32 [float64]")


def _run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="a pipeline from a file: relax, then dynamics, of many structures",
        description="Runs the stages of a TOML file over all structures of its files. The same command again "
        "goes on with the structures that are left.",
        epilog="Exit code: 0 all done, 2 bad usage or unreadable input, 3 some failed or did not converge.",
    )
    run.set_defaults(run="alchemi_jax.cli.run:run")
    run.add_argument("pipeline", help="a TOML file; docs/commands.md has its fields")
    run.add_argument(
        "overrides", nargs="*", metavar="FIELD=VALUE", help="in place of the file's, stages.0.fmax=0.02"
    )
    run.add_argument("--overwrite", action="store_true", help="begin from scratch in the folder of results")


def _show(commands: Any) -> None:
    show = commands.add_parser(
        "show",
        help="what a trajectory holds: means with error bars, and a picture",
        description="Prints what a store of ZarrData holds: systems, frames, and means over the frames with "
        "standard errors from blocks of them. Works while a run is still writing.",
        epilog="Exit code: 0 all is well, 2 bad usage or unreadable input.",
    )
    show.set_defaults(run="alchemi_jax.cli.show:show")
    show.add_argument("trajectory", help="a folder that ZarrData wrote")
    show.add_argument("--out", help="a picture of the quantities against the steps, PNG, PDF or SVG")
    show.add_argument("--skip", type=int, default=0, help="leave out each system's first frames [0]")
    show.add_argument("--overwrite", action="store_true", help="replace the picture")


def _convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="a trajectory as extxyz, .traj, or anything that ASE writes",
        description="Writes the frames of a store of ZarrData to a file whose name says the format.",
        epilog="Exit code: 0 all is well, 2 bad usage or unreadable input.",
    )
    convert.set_defaults(run="alchemi_jax.cli.convert:convert")
    convert.add_argument("trajectory", help="a folder that ZarrData wrote")
    convert.add_argument("out", help="the file to write, out.extxyz for example")
    convert.add_argument(
        "--frames",
        default=":",
        help="a frame, or first:last:step as in Python; --frames=-9: are the last nine [:]",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace the file")


def _info(commands: Any) -> None:
    info = commands.add_parser(
        "info",
        help="versions, devices, precision, and a check of this JAX",
        description="Prints versions, devices and precision, and runs small computations that some "
        "versions of JAX got wrong. Exit code 3 if this one does.",
    )
    info.set_defaults(run="alchemi_jax.cli.info:info")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(arguments)
    module, _, name = args.run.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(args)
    except UsageError as e:
        print(f"alchemi-jax {args.command}: error: {e}", file=sys.stderr)
        return USAGE


if __name__ == "__main__":
    sys.exit(main())
