"""Arguments of `alchemi-jax`, and what its exit codes mean."""

import argparse
import sys

from alchemi_jax._version import __version__
from alchemi_jax.cli.outcome import USAGE, UsageError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="alchemi-jax", description="Batched atomistic dynamics in JAX.")
    top.add_argument("--version", action="version", version=f"alchemi-jax {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    relax = commands.add_parser(
        "relax",
        help="relax structures, all at once",
        description="Relaxes the positions of all structures in the files, in fixed cells, with FIRE. "
        "Without files: the sample set of noble-gas clusters and crystals.",
        epilog="Exit code: 0 all converged, 2 bad usage or unreadable input, 3 not all converged.",
    )
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

    commands.add_parser(
        "info",
        help="versions, devices, precision, and a check of this JAX",
        description="Prints versions, devices and precision, and runs small computations that some "
        "versions of JAX got wrong. Exit code 3 if this one does.",
    )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(arguments)
    try:
        if args.command == "info":
            from alchemi_jax.cli.info import info

            return info()
        from alchemi_jax.cli.relax import relax

        return relax(args)
    except UsageError as e:
        print(f"alchemi-jax {args.command}: error: {e}", file=sys.stderr)
        return USAGE


if __name__ == "__main__":
    sys.exit(main())
