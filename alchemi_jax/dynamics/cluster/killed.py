"""Tasks whose workers died: their systems are tried in smaller groups, and one that is left alone fails."""

import jax.numpy as jnp
import numpy as np

from alchemi_jax.dynamics.finish import with_reason_texts
from alchemi_jax.dynamics.init import prepare_batch
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.reasons import KILLS
from alchemi_jax.dynamics.rescue import count_rescues, has_rescue
from alchemi_jax.dynamics.start import start_bookkeeping
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.outcome import Outcome


#: Into so many groups the systems of such a task are split.
PARTS = 4


def split(host: HostBatch) -> list[HostBatch]:
    """The systems in up to four groups."""
    return [host.take(rows) for rows in np.array_split(np.arange(len(host)), PARTS) if len(rows)]


def as_failed(engine: Engine, host: HostBatch) -> HostBatch:
    """Systems as they were given, marked as failed. On the host."""
    batch = start_bookkeeping(prepare_batch(engine, Batch.from_host(host)))
    if has_rescue(engine):
        batch = count_rescues(batch)
    real = batch.system_mask
    batch = batch.replace(
        failed=batch.failed | real,
        outcome=jnp.where(real, jnp.int32(Outcome.FAILED), batch.outcome),
        reason=jnp.where(real, jnp.int32(KILLS), batch.reason),
        status=jnp.where(real, jnp.int32(engine.exit_status), batch.status),
    )
    return with_reason_texts(engine, batch.with_meta(host.meta)).to_host()


__all__ = ["as_failed", "split"]
