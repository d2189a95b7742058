"""What a run says at its end."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.observables import fmax
from alchemi_jax.systems.outcome import Outcome


#: So many unfinished structures are described, the others only listed.
_DETAILS = 20


def print_rows(rows: Iterable[tuple[str, Any]]) -> None:
    """A table of names and values, after an empty line."""
    print()
    for name, value in rows:
        print(f"  {name:14}{value}")
    sys.stdout.flush()


def print_unfinished(final: HostBatch, sources: list) -> None:
    """One line on stderr for each structure that did not converge."""
    incomplete = np.flatnonzero((final.outcome != Outcome.CONVERGED) & (final.outcome != Outcome.RUNNING))
    worst = np.asarray(fmax(final)) if len(incomplete) else np.zeros(0)
    for i in incomplete.tolist()[:_DETAILS]:
        path, index, _ = sources[int(final.system_id[i])]
        what = final.outcome_text(i)
        if final.outcome[i] != Outcome.FAILED:
            what = "did not converge" if final.outcome[i] != Outcome.STOPPED else what
            what += f", fmax {worst[i]:.4f} eV/Å after {final.steps_taken[i]} steps"
        print(f"{path}, structure {index}: {what}.", file=sys.stderr)
    further: dict[Path, list[int]] = {}
    for i in incomplete.tolist()[_DETAILS:]:
        path, index, _ = sources[int(final.system_id[i])]
        further.setdefault(path, []).append(index)
    for path, indices in further.items():
        print(f"{path}, structures {', '.join(map(str, indices))}: likewise.", file=sys.stderr)
