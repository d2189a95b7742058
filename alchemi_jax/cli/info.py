"""`alchemi-jax info`: what one would put into a bug report."""

import argparse
import platform
from importlib import metadata

from alchemi_jax.cli.canaries import finalize
from alchemi_jax.cli.outcome import INCOMPLETE, OK


PACKAGES = (
    "alchemi-jax",
    "jax",
    "jaxlib",
    "equinox",
    "flax",
    "orbax-checkpoint",
    "zarr",
    "plum-dispatch",
    "jaxtyping",
    "numpy",
    "ase",
)


def info(args: argparse.Namespace | None = None) -> int:
    """Prints versions, devices, precision and a verdict on this JAX."""
    import jax

    print(f"{'python':18}{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        print(f"{name:18}{version}")
    print(f"{'devices':18}{', '.join(f'{d.platform}:{d.id} {d.device_kind}' for d in jax.devices())}")
    wide = "float64" if jax.config.read("jax_enable_x64") else "float32 (float64 with JAX_ENABLE_X64=1)"
    print(f"{'precision':18}{wide}; alchemi-jax relax computes in float64 unless told otherwise")
    faults = finalize()
    for fault in faults:
        print(f"{'this JAX':18}WRONG: {fault}. Install another version of jax.")
    if not faults:
        print(f"{'this JAX':18}passes the checks for known faults")
    return INCOMPLETE if faults else OK
