"""What cannot be divided among devices is refused by name, before anything is compiled."""

from typing import Any

import equinox as eqx
import jax

from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.errors import name_of
from alchemi_jax.hooks import TracedHook
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import map_by_level


_WHERE = "with devices= each device has some of the systems"


def check_hooks(engine: Engine, where: str = _WHERE, leave: str = "devices") -> None:
    """Check that no hook relates systems to one another, or measures a device.

    Args:
        where: what divides the systems, for messages. leave: what to leave out.

    Raises:
        ValueError: naming the hook.
    """
    for group in engine.groups:
        for hook in group.hooks:
            if flag(hook, "needs_fixed_systems"):
                raise ValueError(
                    f"{name_of(hook)} relates systems of a batch to one another, but {where}: leave one of "
                    "the two out."
                )
            if flag(hook, "one_device"):
                raise ValueError(f"{name_of(hook)} measures one device: leave {leave} out.")


def check_memories(engine: Engine, batch: Batch, where: str = _WHERE, leave: str = "devices") -> None:
    """Check that traced hooks have neither values for rows nor a memory that all systems share.

    Args:
        batch: the systems of a part. where, leave: as for `check_hooks`.

    Raises:
        ValueError: naming the hook.
    """
    lengths = {batch.system_capacity, batch.atom_capacity, batch.num_systems, batch.num_atoms} - {1}
    for group in engine.groups:
        for hook in group.hooks.traced:
            for path, leaf in jax.tree_util.tree_leaves_with_path(hook):
                if eqx.is_array(leaf) and leaf.ndim and leaf.shape[0] in lengths:
                    raise ValueError(
                        f"{name_of(hook)}{jax.tree_util.keystr(path)} has a value for each row, but "
                        f"{where}: leave {leave} out."
                    )
            if _has_shared(hook, batch):
                raise ValueError(
                    f"{name_of(hook)} has a memory that all systems share, but {where}: declare it per "
                    f"system or per atom (alchemi_jax.levels), or leave {leave} out."
                )


def _has_shared(hook: TracedHook, batch: Batch) -> bool:
    if type(hook).init is TracedHook.init:
        return False
    memory, found = jax.eval_shape(lambda: hook.init(batch)), []

    def look(level: str, leaf: Any) -> Any:
        if level == "shared":
            found.append(leaf)
        return leaf

    map_by_level(look, memory)
    return bool(found)


_STREAM = "With a sampler and devices= it sees the systems of one device at a time"


def check_follows(engine: Engine, sees: str = _STREAM, leave: str = "one of the two") -> None:
    """Check that hooks of the host know systems by their ids: in a stream they see those of one device.

    Args:
        sees: what the hook sees, for messages. leave: what to leave out.

    Raises:
        ValueError: naming the hook.
    """
    for group in engine.groups:
        for entry in [*group.hooks.host, *group.hooks.recording]:
            hook = entry.hook
            known = flag(hook, "follows_systems") or flag(hook, "own_steps")
            if not known and not isinstance(hook, CheckpointHook):
                raise ValueError(
                    f"{name_of(hook)} is not known to identify systems by their ids. {sees}: "
                    f"leave {leave} out, or set "
                    "`follows_systems = True` on the hook."
                )


__all__ = ["check_follows", "check_hooks", "check_memories"]
