"""What a system carries that is no array."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class SystemMeta:
    """What a system carries that is no array: its name, `info`, constraints that are not applied, and, after
    a run, why it failed or was stopped."""

    name: str
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constraints: tuple = ()
    reason: str = ""


class Metadata(tuple[SystemMeta, ...]):
    """One SystemMeta a system, in order. Compared by identity: it is part of the pytree's structure,
    so the driver takes it off before anything is compiled."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other
