"""Loops that are not dynamics: the page docs/howto/workflows.md runs, line by line as it stands."""

import dataclasses
import re
from enum import Enum
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import plum
import pytest
from conftest import cluster

import alchemi_jax
from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, DynamicsStage
from alchemi_jax.hooks import HookContext, HookSet, TracedHook
from alchemi_jax.models import HarmonicModel


PAGE = Path(alchemi_jax.__file__).parent.parent / "docs" / "howto" / "workflows.md"


@pytest.fixture(scope="module")
def names():
    if not PAGE.exists():
        pytest.skip("installed without its repository")
    given = {
        "Any": Any,
        "DynamicsStage": DynamicsStage,
        "Enum": Enum,
        "HookContext": HookContext,
        "HookSet": HookSet,
        "TracedHook": TracedHook,
        "dataclasses": dataclasses,
        "eqx": eqx,
        "jax": jax,
        "jnp": jnp,
        "plum": plum,
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert max(len(block.splitlines()) for block in blocks) <= 40
    for block in blocks:
        exec(block, given)
    return given


@pytest.fixture(scope="module")
def batch():
    batch = Batch.from_ase([cluster(i, 4) for i in range(3)], system_capacity=3)
    return batch.replace(energy=HarmonicModel(k=0.7).energy(batch, None), meta=None)


def energy(params, batch):
    return HarmonicModel(k=params["k"]).energy(batch, None)


def test_the_fit_of_the_page(names):
    k = float(names["params"]["k"])
    assert f"k = {k:.3f}" in PAGE.read_text()


@pytest.mark.cheap_xla
def test_a_fit_with_traced_and_host_hooks(names, batch, capsys, compilations):
    """The compiled step is compiled once; the clipped gradient moves the parameter by rate times limit."""
    seen = []

    class Note:
        stage, frequency = names["Stage"].AFTER_GRADIENT, 1

        def __call__(self, ctx, stage):
            assert isinstance(ctx, names["FitContext"])
            seen.append((ctx.epoch, float(ctx.gradients["k"])))

    class Count(TracedHook):
        stage: Any = names["Stage"].AFTER_UPDATE
        frequency: int = 2

        def init(self, batch):
            return jnp.zeros((), jnp.int32)

        def __call__(self, ctx, stage):
            return ctx.with_memory(ctx.memory + 1)

    start = {"k": jnp.asarray(np.float64(2.0))}
    fit = names["Fit"](
        energy, 1e-3, [names["ClipGradients"](limit=0.5), Count(), names["PrintLoss"](), Note()]
    )
    once = fit.run(start, batch, 1)
    assert float(once["k"]) == pytest.approx(2.0 - 1e-3 * 0.5)
    with compilations() as count:
        found = fit.run(start, batch, 101)
    assert not [name for name in count if "step" in name]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["epoch 0", "epoch 50", "epoch 100"]
    assert [int(epoch) for epoch, _ in seen] == [0, *range(101)]
    assert max(g for _, g in seen) == 0.5
    assert float(found["k"]) == pytest.approx(2.0 - 1e-3 * sum(g for _, g in seen[1:]))
    _, memory = fit.step(fit.hooks, start, batch, fit.hooks.init(batch), jnp.asarray(1))
    assert (memory[0], int(memory[1])) == (None, 0)
    far = names["Fit"](energy, 1e-3, []).run(start, batch, 400)
    assert float(far["k"]) == pytest.approx(0.7, abs=1e-3)


def test_what_the_loop_does_not_name_is_not_taken_over(names, batch):
    class Meddles(TracedHook):
        stage: Any = names["Stage"].AFTER_GRADIENT
        frequency: int = 1

        def __call__(self, ctx, stage):
            return dataclasses.replace(ctx, loss=ctx.loss * 0, params=None)

    fit = names["Fit"](energy, 1e-3, [Meddles()])
    ctx, _ = fit.step(fit.hooks, {"k": jnp.asarray(2.0)}, batch, (None,), jnp.asarray(0))
    assert float(ctx.loss) > 0
    assert ctx.params is not None

    class Reshapes(Meddles):
        def __call__(self, ctx, stage):
            return dataclasses.replace(ctx, gradients={"k": jnp.zeros(3)})

    with pytest.raises(TypeError, match=r"Reshapes returned gradients\['k'\] as float64\[3\]; it must stay"):
        names["Fit"](energy, 1e-3, [Reshapes()]).run({"k": jnp.asarray(2.0)}, batch, 1)


def test_a_hook_for_several_workflows(names, batch):
    """The same class in both, as a host hook and as a traced one; unfit stages are refused."""
    stages, log = names["Stage"], names["UniversalLogger"]
    training, dynamics, other = (
        log(stages.AFTER_UPDATE),
        log(DynamicsStage.AFTER_STEP),
        log(stages.AFTER_UPDATE),
    )
    names["Fit"](energy, 1e-3, [training]).run({"k": jnp.asarray(2.0)}, batch, 2)
    NVE(model=HarmonicModel(), dt=1.0, n_steps=2, hooks=[dynamics]).run(batch)
    assert [line.split(":")[0] for line in training.lines + dynamics.lines] == [
        "epoch 0",
        "epoch 1",
        "step 0",
        "step 1",
    ]

    class Third(Enum):
        THERE = 0

    HookSet([log(Third.THERE)]).check_stages(None)
    HookSet([log(Third.THERE), other]).check_stages((Third, stages))
    with pytest.raises(TypeError, match=r"UniversalLogger\.stage must be a Stage or DynamicsStage"):
        HookSet([log(Third.THERE)]).check_stages((stages, DynamicsStage))
    with pytest.raises(TypeError, match=r"UniversalLogger\.stage must be a DynamicsStage"):
        NVE(model=HarmonicModel(), dt=1.0, hooks=[other])

    class Both(TracedHook):
        stage: Any
        frequency: int = 1

        @plum.dispatch
        def __call__(self, ctx: HookContext, stage: DynamicsStage):
            return ctx.with_batch(charge=ctx.batch.charge + 1)

        @plum.dispatch
        def __call__(self, ctx: HookContext, stage: Enum):  # noqa: F811
            return dataclasses.replace(ctx, params={"k": ctx.params["k"] * 0 + 5})

    out = NVE(model=HarmonicModel(), dt=1.0, n_steps=2, hooks=[Both(DynamicsStage.AFTER_STEP)]).run(batch)
    assert np.asarray(out.charge).tolist() == [2.0] * 3
    fitted = names["Fit"](energy, 1e-3, [Both(stages.AFTER_UPDATE)]).run({"k": jnp.asarray(2.0)}, batch, 1)
    assert float(fitted["k"]) == 5
