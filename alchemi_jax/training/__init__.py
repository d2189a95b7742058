"""Training: fit a model to labels, with the hooks of dynamics."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.training.batch import ListedBatches as ListedBatches
    from alchemi_jax.training.batch import TrainingBatch as TrainingBatch
    from alchemi_jax.training.context import TrainingContext as TrainingContext
    from alchemi_jax.training.data import Batches as Batches
    from alchemi_jax.training.losses import Loss as Loss
    from alchemi_jax.training.losses import errors as errors
    from alchemi_jax.training.mixture import Mixture as Mixture
    from alchemi_jax.training.packed import PackedBatch as PackedBatch
    from alchemi_jax.training.precision import Precision as Precision
    from alchemi_jax.training.stage import TrainingStage as TrainingStage
    from alchemi_jax.training.state import TrainingState as TrainingState
    from alchemi_jax.training.statistics import fit_element_energies as fit_element_energies
    from alchemi_jax.training.statistics import force_scale as force_scale
    from alchemi_jax.training.statistics import network_for as network_for
    from alchemi_jax.training.trainer import Trainer as Trainer
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
