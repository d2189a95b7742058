"""Hooks: the protocol, the context that hooks see, and all that a workflow needs to call them.

It does not depend on dynamics: any loop with stages can use a `HookSet`.
"""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.hooks.context import HookContext as HookContext
    from alchemi_jax.hooks.protocol import Hook as Hook
    from alchemi_jax.hooks.protocol import HookFlags as HookFlags
    from alchemi_jax.hooks.protocol import RecordingHook as RecordingHook
    from alchemi_jax.hooks.protocol import TracedHook as TracedHook
    from alchemi_jax.hooks.set import HookSet as HookSet
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
