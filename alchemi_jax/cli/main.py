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
    for add in (_relax, _show, _convert, _info):
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
        help="lj (noble gases, the default), lj:epsilon=EV,sigma=A[,cutoff=A] for any atoms, or "
        "morse:depth=EV,width=1/A,r0=A[,cutoff=A]",
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
