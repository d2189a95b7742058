"""`--cluster`: the structures of a run are computed by the workers of a Dask cluster."""

from pathlib import Path
from typing import Any

from jaxtyping import PRNGKeyArray

from alchemi_jax.cli.finished import FinishedSystems
from alchemi_jax.cli.outcome import UsageError, one_line
from alchemi_jax.cli.watch import Watch
from alchemi_jax.dynamics import Sampler
from alchemi_jax.dynamics.cluster.connect import connect
from alchemi_jax.dynamics.cluster.run import run_on_cluster
from alchemi_jax.dynamics.engine import AbstractDynamics


def run_over(
    where: str,
    engine: AbstractDynamics,
    sampler: Sampler,
    sink: FinishedSystems,
    key: PRNGKeyArray,
    folder: Path,
    watch: Watch,
) -> None:
    """Run all systems on the workers of a cluster, or go on with them.

    Args:
        where: see `connect`. folder: what is finished is kept in it. watch: shows that.

    Raises:
        UsageError: without Dask, or if workers lack something. ConnectionError, ValueError: see `connect` and
            `run_on_cluster`.
    """
    try:
        with connect(where) as client:

            def count(ids: Any) -> None:
                watch.count(ids)
                watch.show_finished(f"on {where}")

            sink.count = count
            watch.bar.set_postfix_str(f"workers of {where} compile", refresh=True)
            run_on_cluster(engine, sampler, client, sink=sink, key=key, resume=folder)
    except ImportError as e:
        raise UsageError(one_line(e)) from None
