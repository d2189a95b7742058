"""Training: fit a model to labels, with the hooks of dynamics."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.training.batch import ListedBatches as ListedBatches
    from alchemi_jax.training.batch import TrainingBatch as TrainingBatch
    from alchemi_jax.training.context import TrainingContext as TrainingContext
    from alchemi_jax.training.precision import Precision as Precision
    from alchemi_jax.training.stage import TrainingStage as TrainingStage
    from alchemi_jax.training.state import TrainingState as TrainingState
    from alchemi_jax.training.trainer import Trainer as Trainer
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
