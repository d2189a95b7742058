"""What goes to the workers of a cluster: an engine without what its hooks write to, settings and a key."""

import contextlib
import dataclasses
import io
import pickle
from collections.abc import Iterator
from typing import Any

import jax

from alchemi_jax._version import __version__
from alchemi_jax.dynamics.devices.proxies import with_hook_sets
from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.saved import join_key, key_parts
from alchemi_jax.errors import name_of
from alchemi_jax.hooks import HookSet
from alchemi_jax.hooks.lifecycle import Openings
from alchemi_jax.parameters import as_key
from alchemi_jax.systems.levels import unsafe_replace


#: Attributes of hooks of the host that they write with. They stay where the run was called.
_WRITES = ("sink", "writer")
#: Where JAX keeps compiled programs on disk.
_CACHE = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of JAX, the same on all workers, and versions.

    Attributes:
        x64, precision: see JAX. cache: of compiled programs; only used where a worker has none of its own.
        version, jax: of this package and of JAX.
    """

    x64: bool
    precision: Any
    cache: dict[str, Any]
    version: str
    jax: str

    @classmethod
    def here(cls) -> "Settings":
        """Those of this thread."""
        config: Any = jax.config
        return cls(
            bool(config.jax_enable_x64),
            config.jax_default_matmul_precision,
            {name: getattr(config, name, None) for name in _CACHE},
            __version__,
            jax.__version__,
        )

    def check(self) -> None:
        """Check that this process has the same packages.

        Raises:
            ImportError: naming the versions.
        """
        for name, wanted, found in (
            ("alchemi_jax", self.version, __version__),
            ("jax", self.jax, jax.__version__),
        ):
            if wanted != found:
                raise ImportError(
                    f"a worker has {name} {found}, the run was called with {wanted}: install the same there."
                )

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """A context with these settings, in this thread."""
        if self.cache[_CACHE[0]] and not getattr(jax.config, _CACHE[0], None):
            for name, value in self.cache.items():
                jax.config.update(name, value)
        with jax.enable_x64(self.x64), jax.default_matmul_precision(self.precision):
            yield


class Elsewhere:
    """In place of what a hook writes to: on a worker nothing is written."""


def _pickled(tree: Any, without: set[int]) -> bytes:
    """As cloudpickle does, which also takes functions that are in no module, without some objects."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return "elsewhere" if id(obj) in without else None

    with io.BytesIO() as file:
        Pickler(file, protocol=5).dump(tree)
        return file.getvalue()


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> Any:
        return Elsewhere()


class _Strip:
    """Hooks as they go to the workers: closed, and without a CheckpointHook."""

    def hook_set(self, hooks: HookSet, group: int) -> HookSet:
        kept = tuple(entry for entry in hooks.host if not isinstance(entry.hook, CheckpointHook))
        return unsafe_replace(hooks, host=kept, openings=Openings())


def strip(engine: Engine) -> Engine:
    """The engine without a CheckpointHook and as if no hook were open; the hooks are the same objects."""
    return with_hook_sets(engine, _Strip())


def pack(engine: Engine, key: Any) -> bytes:
    """An engine, a key and the settings of JAX, pickled.

    Raises:
        ValueError: naming what cannot be pickled.
    """
    hooks = [h for group in engine.groups for h in group.hooks]
    without = {id(getattr(h, name)) for h in hooks for name in _WRITES if hasattr(h, name)}
    work = {"engine": engine, "key": key_parts(as_key(key))}
    settings = pickle.dumps(Settings.here())
    try:
        return pickle.dumps((settings, _pickled(work, without)))
    except Exception as e:
        # What is pickled is the user's, and raises errors of all types.
        who = next((h for h in [*hooks, engine.model] if not _can_pickle(h, without)), engine)
        reason = " ".join(str(e).split()).rstrip(".") or type(e).__name__
        raise ValueError(
            f"{name_of(who)} cannot be pickled ({reason[:300]}), so it cannot go to the workers of a "
            "cluster: give it no open files, locks or generators, or leave client out."
        ) from e


def _can_pickle(thing: Any, without: set[int]) -> bool:
    try:
        _pickled(thing, without)
    except Exception:
        return False
    return True


def unpack_settings(work: bytes) -> tuple[Settings, bytes]:
    """The settings, and the rest, which must be read with them."""
    settings, rest = pickle.loads(work)
    return pickle.loads(settings), rest


def unpack(rest: bytes) -> tuple[Engine, Any]:
    """Engine and key. In the context of the settings: without them float64 would become float32."""
    found = _Unpickler(io.BytesIO(rest)).load()
    return found["engine"], join_key(found["key"])


__all__ = ["Elsewhere", "Settings", "pack", "strip", "unpack", "unpack_settings"]
