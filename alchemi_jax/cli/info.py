"""`alchemi-jax info`: what one would put into a bug report."""

import platform
from importlib import metadata
from typing import Any

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


def info(args: Any = None, signals: Any = None) -> int:
    """Prints versions at once, then devices and precision, then a verdict on this JAX."""
    _say("python", f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "not installed"
        _say(name, version)
    import jax

    from alchemi_jax.cli.cache import cache_folder

    try:
        devices = ", ".join(f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices())
    except RuntimeError as e:
        _say("devices", f"none: {' '.join(str(e).split())}")
        return INCOMPLETE
    _say("devices", devices)
    wide = "float64" if jax.config.read("jax_enable_x64") else "float32 (float64 with JAX_ENABLE_X64=1)"
    _say("precision", f"{wide}; the commands compute in float64 unless told otherwise")
    folder = cache_folder()
    size = sum(f.stat().st_size for f in folder.glob("*") if f.is_file()) if folder.is_dir() else 0
    _say("compiled programs", f"{size / 1e6:.1f} MB in {folder}")

    from alchemi_jax.cli.canaries import CANARIES

    faults = []
    for canary in CANARIES:
        fault = canary()
        if fault is not None:
            faults.append(fault)
            _say("this JAX", f"WRONG: {fault}. Install another version of jax.")
    if not faults:
        _say("this JAX", "passes the checks for known faults")
    return INCOMPLETE if faults else OK


def _say(name: str, text: str) -> None:
    # At once, also into a pipe: what follows may take seconds.
    print(f"{name:18}{text}", flush=True)
