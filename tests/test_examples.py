"""The scripts in `examples/`, in short."""

from pathlib import Path

import jax
import numpy as np
import pytest

import alchemi_jax
from alchemi_jax.models import CHGNet
from alchemi_jax.training.parameters import paths_of


ROOT = Path(alchemi_jax.__file__).parent.parent
if not (ROOT / "examples").exists():
    pytest.skip("installed without its repository", allow_module_level=True)

from examples import active_learning, fine_tune_chgnet  # noqa: E402


def chgnet():
    try:
        return CHGNet.load()
    except OSError as e:
        pytest.skip(f"no weights: {e}")


def test_active_learning_adds_what_stopped(monkeypatch, capsys):
    """Networks that hardly know anything are not sure at once; what stopped them is in the next round."""
    monkeypatch.setattr(active_learning, "SYSTEMS", 2)
    monkeypatch.setattr(active_learning, "MEMBERS", 2)
    monkeypatch.setattr(active_learning, "LIMIT", 1e-3)
    first, second = active_learning.main(rounds=1, md_steps=10, train_steps=5)
    assert first[0] == 6
    assert first[1] > 0
    assert second[0] == first[0] + first[1]
    assert first[2] < 10
    assert np.isfinite([first[3], second[3]]).all()
    assert capsys.readouterr().out.startswith("6 structures known: ")


def test_what_of_chgnet_is_trained():
    """Layers of messages and the readout."""
    trainer = fine_tune_chgnet.make_trainer(chgnet(), 10)
    trained, kept = ({path.split(".")[0] for path in paths_of(part)} for part in trainer.split())
    assert trained == {"layers", "readout", "readout_norm"}
    assert kept == set(fine_tune_chgnet.FROZEN)


@pytest.mark.full_xla
@pytest.mark.long
def test_fine_tuning_lowers_the_errors_on_other_structures(capsys):
    chgnet()
    with jax.enable_x64(False):
        fine_tune_chgnet.main()
    before, after = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    assert float(after[2]) < float(before[2])
    assert float(after[5]) < 0.7 * float(before[5])
