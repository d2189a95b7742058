"""Why a system failed or was stopped: small numbers in `batch.reason`, and their texts."""

from typing import Any

from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.errors import name_of
from alchemi_jax.hooks.check import MOST_REASONS
from alchemi_jax.hooks.protocol import TracedHook, flag
from alchemi_jax.neighbors.limits import MOST_DENSE, memory


#: Fields that must be finite, in the order of their numbers, from 1 on.
FIELDS = ("energy", "forces", "velocities", "positions", "cell", "stress", "masses", "charge", "time")
#: Further reasons, with the numbers that follow: their texts.
TOO_FAR, TOO_DENSE, COLLAPSED, KILLS = (len(FIELDS) + n for n in range(1, 5))
_OTHERS = {
    TOO_FAR: "its atoms are so far from the origin that rounding would change their distances",
    TOO_DENSE: (
        "its cell became too small for a cutoff of {cutoff:g} Å and a skin of {skin:g} Å: "
        "the neighbor list would not fit into {memory:.3g} GiB of memory"
    ),
    COLLAPSED: f"its cell collapsed: there would be more than {MOST_DENSE:g} atoms per Å³",
    KILLS: "each worker of the cluster that computed it died (was its memory too small?)",
}
_FIRST_HOOK = 16
_PER_HOOK = MOST_REASONS + len(FIELDS)


def field_reason(name: str) -> int:
    """A field is not finite, and the model or the algorithm made it so."""
    return 1 + FIELDS.index(name)


def hook_reason(number: int, local: Any = 0) -> Any:
    """A hook said so.

    Args:
        number: of the hook among all traced hooks.
        local: number in its `reasons`, an int or an array.
    """
    return _FIRST_HOOK + _PER_HOOK * number + local


def hook_field_reason(number: int, name: str) -> int:
    """A hook left a field that is not finite."""
    return hook_reason(number, MOST_REASONS + FIELDS.index(name))


def is_numerical(code: int) -> bool:
    """Whether the model or the algorithm made something that is not finite; no hook had a part in it."""
    return 0 < code <= len(FIELDS)


def is_rescuable(code: Any, hooks: Any) -> Any:
    """Whether shorter steps may help: a field was not finite, atoms were too far or too dense; or, where
    `hooks` is true, a hook said so. Arrays [systems]."""
    by_hook = code >= _FIRST_HOOK
    not_finite = by_hook & ((code - _FIRST_HOOK) % _PER_HOOK >= MOST_REASONS)
    return (code > 0) & (~by_hook | not_finite | hooks)


def is_of_model(code: int) -> bool:
    """Whether a result of the model is not finite."""
    return any(code == field_reason(name) for name in ("energy", "forces", "stress"))


def reason_text(engine: Engine, code: int) -> str:
    """The reason in words, without the system's name: "its forces are not finite". Empty for 0."""
    if code <= 0:
        return ""
    if code in _OTHERS:
        needed = engine.model.requirements
        return _OTHERS[code].format(cutoff=needed.cutoff, skin=needed.skin, memory=memory() / 2**30)
    if code < _FIRST_HOOK:
        return _not_finite(FIELDS[code - 1]) if code <= len(FIELDS) else f"reason {code}"
    number, local = divmod(code - _FIRST_HOOK, _PER_HOOK)
    hooks: list[TracedHook] = [hook for group in engine.groups for hook in group.hooks.traced]
    if number >= len(hooks):
        return f"reason {code}"
    hook = hooks[number]
    if local >= MOST_REASONS:
        return f"{_not_finite(FIELDS[local - MOST_REASONS])} after {name_of(hook)}"
    texts = flag(hook, "reasons")
    return f"{name_of(hook)}: {texts[local]}" if local < len(texts) else name_of(hook)


def _not_finite(field: str) -> str:
    return f"its {field} {'are' if field.endswith('s') and field != 'stress' else 'is'} not finite"


__all__ = [
    "COLLAPSED",
    "FIELDS",
    "KILLS",
    "TOO_DENSE",
    "TOO_FAR",
    "field_reason",
    "hook_field_reason",
    "hook_reason",
    "is_numerical",
    "is_of_model",
    "is_rescuable",
    "reason_text",
]
