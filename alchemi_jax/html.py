"""What batches and engines look like in a notebook: small HTML tables."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from alchemi_jax.systems.batch import Batch

#: So many systems of a batch are shown.
ROWS = 10


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """An HTML table; everything is escaped."""

    def line(cells: Sequence[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    top = f"<thead>{line(head, 'th')}</thead>" if head else ""
    return f"<div><div>{escape(caption)}</div><table>{top}<tbody>{body}</tbody></table></div>"


def of_batch(batch: "Batch") -> str:
    """Systems of a batch, the first of them if there are many."""
    host = batch.take(np.arange(min(batch.num_systems, ROWS)))
    norms = np.linalg.norm(np.asarray(host.forces), axis=1)
    largest = np.maximum.reduceat(norms, np.asarray(host.first_atom))
    rows: list[tuple[Any, ...]] = [
        (
            host.name_of(i),
            host.atoms_per_system[i],
            f"{host.energy[i]:.6g}",
            f"{largest[i]:.4g}",
            host.status[i],
            host.steps_taken[i],
            "failed" if host.failed[i] else "yes" if host.converged[i] else "no",
        )
        for i in range(len(host.atoms_per_system))
    ]
    more = batch.num_systems - len(rows)
    if more:
        rows.append((f"and {more} more", *[""] * 6))
    head = ("system", "atoms", "energy (eV)", "fmax (eV/Å)", "status", "steps", "converged")
    return table(head, rows, repr(batch))
