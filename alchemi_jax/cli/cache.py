"""Compiled programs, kept on disk between calls, and how long compiling took."""

import hashlib
import os
import platform
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from alchemi_jax._version import __version__
from alchemi_jax.folders import user_cache


#: Programs that compile faster are not worth a file.
_LEAST_SECONDS = 0.05


def cache_folder() -> Path:
    """The folder of compiled programs of this user, processor, jax and version of this package.

    Code that was compiled for another processor can die of an illegal instruction, so the features of the
    processor are part of the name.
    """
    jax = metadata.version("jax")
    features = hashlib.sha256(_cpu().encode()).hexdigest()[:12]
    return user_cache() / "alchemi-jax" / f"{platform.machine()}-{features}-jax-{jax}-{__version__}"


def _cpu() -> str:
    """What the processor can do, as text; on systems without /proc its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    wanted = ("flags", "Features", "model name", "cpu family", "model")
    found = {line.partition(":")[0].strip(): line.partition(":")[2] for line in lines}
    return "\n".join(f"{name}:{' '.join(sorted(found.get(name, '').split()))}" for name in wanted)


def use_cache(wanted: bool) -> Path | None:
    """Let JAX keep compiled programs on disk, unless the user has set a folder of their own.

    Returns:
        The folder, or None if there is none.
    """
    import jax

    # Reading or writing an entry may fail, for want of space for example: then the program is compiled.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    if not wanted:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    own = getattr(jax.config, "jax_compilation_cache_dir", None)
    if own:
        return Path(own)
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            return None
    except (OSError, RuntimeError):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


class CompileTime:
    """A context that measures the time in which programs were traced and compiled, or read from the cache."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> "CompileTime":
        from jax import monitoring

        monitoring.register_event_duration_secs_listener(self._add)
        return self

    def __exit__(self, *exc: Any) -> None:
        from jax import monitoring

        # Not in all versions of jax.
        unregister = getattr(monitoring, "unregister_event_duration_listener", None)
        if unregister is not None:
            unregister(self._add)

    def _add(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self._spans.append((now - duration_secs, now))

    @property
    def seconds(self) -> float:
        """Seconds so far. Spans that overlap, as of a function traced in another one, count once."""
        total, until = 0.0, 0.0
        for start, end in sorted(self._spans):
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total
