"""What cannot be divided among devices is refused by name, before anything is compiled."""

from typing import Any, NamedTuple

import equinox as eqx
import jax

from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.rows import check_relations
from alchemi_jax.errors import name_of
from alchemi_jax.hooks import TracedHook
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import map_by_level


class Division(NamedTuple):
    """What divides the systems of a run, in the words of messages.

    Attributes:
        where: what has some of the systems. instead: what to do with a hook that needs all.
    """

    where: str
    instead: str


DEVICES = Division("with devices= each device has some of the systems", "leave devices out")


def check_hooks(engine: Engine, division: Division = DEVICES) -> None:
    """Check that no hook relates systems to one another, or measures a device.

    Raises:
        ValueError: naming the hook.
    """
    check_relations(engine, division.where, "leave one of the two out")
    for group in engine.groups:
        for hook in group.hooks:
            if flag(hook, "one_device"):
                raise ValueError(f"{name_of(hook)} measures one device: {division.instead}.")


def check_memories(engine: Engine, batch: Batch, division: Division = DEVICES) -> None:
    """Check that traced hooks have neither values for rows nor a memory that all systems share.

    Args:
        batch: the systems of a part.

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
                        f"{division.where}: {division.instead}."
                    )
            if _has_shared(hook, batch):
                raise ValueError(
                    f"{name_of(hook)} has a memory that all systems share, but {division.where}: "
                    f"declare it per system or per atom (alchemi_jax.levels), or {division.instead}."
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


__all__ = ["DEVICES", "Division", "check_follows", "check_hooks", "check_memories"]
