"""The hooks that the original user guide writes, written for JAX arrays, each doing what it does there."""

import re
import time
from enum import Enum

import jax.numpy as jnp
import pytest
from conftest import cluster
from plum import dispatch

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE
from alchemi_jax.dynamics.engine import DynamicsStage
from alchemi_jax.hooks import Hook, HookContext, HookSet, TracedHook
from alchemi_jax.models import HarmonicModel


class MyHook:
    stage = DynamicsStage.AFTER_STEP
    frequency = 1

    def __call__(self, ctx: HookContext, stage: DynamicsStage) -> None:
        print(f"Step {ctx.step_count}: energy = {ctx.batch.energy.mean():.4f}")


class PrintFmaxHook:
    stage = DynamicsStage.AFTER_STEP
    frequency = 1

    def __call__(self, ctx: HookContext, stage: DynamicsStage) -> None:
        fmax = jnp.linalg.norm(ctx.batch.forces, axis=-1).max().item()
        print(f"Step {ctx.step_count}: fmax = {fmax:.4f} eV/A")


class StepTimerHook:
    """At two stages: the clock starts at one and is read at the other."""

    stage = DynamicsStage.BEFORE_STEP
    frequency = 1

    def __init__(self):
        self.begun = None

    def _runs_on_stage(self, stage: Enum) -> bool:
        return stage in (DynamicsStage.BEFORE_STEP, DynamicsStage.AFTER_STEP)

    def __call__(self, ctx: HookContext, stage: DynamicsStage) -> None:
        if stage is DynamicsStage.BEFORE_STEP:
            self.begun = time.perf_counter()
        elif self.begun is not None:
            print(f"Step {ctx.step_count}: {1e3 * (time.perf_counter() - self.begun):.1f} ms")


class MyPipelineStage(Enum):
    BEFORE_PROCESS = 0
    AFTER_PROCESS = 1


class StrangeStage(Enum):
    SOMEWHERE = 0


class UniversalLoggerHook:
    """Overloads for two enums, and a fallback for any other."""

    stage = DynamicsStage.AFTER_STEP
    frequency = 10

    def _runs_on_stage(self, stage: Enum) -> bool:
        return stage in (DynamicsStage.AFTER_STEP, MyPipelineStage.AFTER_PROCESS, StrangeStage.SOMEWHERE)

    @dispatch
    def __call__(self, ctx: HookContext, stage: DynamicsStage) -> None:
        fmax = jnp.linalg.norm(ctx.batch.forces, axis=-1).max().item()
        print(f"[dynamics] step {ctx.step_count}: fmax={fmax:.4f}")

    @dispatch
    def __call__(self, ctx: HookContext, stage: MyPipelineStage) -> None:  # noqa: F811
        print(f"[pipeline] step {ctx.step_count}: processed")

    @dispatch
    def __call__(self, ctx: HookContext, stage: Enum) -> None:  # noqa: F811
        print(f"[custom] step {ctx.step_count}: stage={stage.name}")


class FileWriterHook:
    stage = DynamicsStage.AFTER_STEP
    frequency = 10

    def __init__(self, path):
        self.path = path
        self.file = None

    def __enter__(self):
        self.file = open(self.path, "w")
        return self

    def __call__(self, ctx: HookContext, stage: DynamicsStage) -> None:
        self.file.write(f"{ctx.step_count},{ctx.batch.energy.mean().item()}\n")

    def __exit__(self, *exc):
        self.file.close()


@pytest.fixture(scope="module")
def batch():
    return Batch.from_ase([cluster(0, 3), cluster(1, 2)])


def run(batch, *hooks, n_steps=3):
    return NVE(model=HarmonicModel(), dt=1.0, n_steps=n_steps, hooks=hooks).run(batch).take()


def test_my_hook_and_print_fmax(batch, capsys):
    assert isinstance(MyHook(), Hook)
    out = run(batch, MyHook(), PrintFmaxHook())
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == f"Step 2: energy = {out.energy.mean():.4f}"
    assert re.fullmatch(r"Step 2: fmax = \d+\.\d{4} eV/A", lines[-1])
    assert len(lines) == 6


@pytest.mark.cheap_xla
def test_step_timer(batch, capsys):
    run(batch, StepTimerHook())
    lines = capsys.readouterr().out.splitlines()
    assert [re.fullmatch(r"Step (\d): \d+\.\d ms", line).group(1) for line in lines] == ["0", "1", "2"]


def test_universal_logger(batch, capsys):
    """In dynamics, in a pipeline of one's own, and with an enum that it does not know."""
    run(batch, UniversalLoggerHook(), n_steps=11)
    hooks = HookSet([UniversalLoggerHook()])
    hooks.check_stages((MyPipelineStage, StrangeStage))
    for stage in (MyPipelineStage.BEFORE_PROCESS, MyPipelineStage.AFTER_PROCESS, StrangeStage.SOMEWHERE):
        hooks.run_host(HookContext(batch=batch.take(), step_count=20), stage, 20)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["[dynamics] step 0", "[dynamics] step 10"]
    assert lines[2:] == ["[pipeline] step 20: processed", "[custom] step 20: stage=SOMEWHERE"]


def test_file_writer(batch, tmp_path):
    path = tmp_path / "e.csv"
    hook = FileWriterHook(path)
    with NVE(model=HarmonicModel(), dt=1.0, n_steps=21, hooks=[hook]) as engine:
        engine.run(batch)
        engine.run(batch)
    assert hook.file.closed
    rows = [line.split(",") for line in path.read_text().splitlines()]
    assert [int(r[0]) for r in rows] == [0, 10, 20] * 2
    assert float(rows[0][1]) > 0


def test_overloads_in_a_traced_hook(batch):
    class Damp(TracedHook):
        factor: float
        stage: DynamicsStage = DynamicsStage.AFTER_STEP
        frequency: int = 1

        @dispatch
        def __call__(self, ctx: HookContext, stage: DynamicsStage) -> HookContext:
            return ctx.with_batch(velocities=ctx.batch.velocities * self.factor)

        @dispatch
        def __call__(self, ctx: HookContext, stage: Enum) -> HookContext:  # noqa: F811
            return ctx

    plain, damped = run(batch, n_steps=1), run(batch, Damp(factor=0.5), n_steps=1)
    assert damped.velocities[0, 0] == pytest.approx(plain.velocities[0, 0] / 2)
    hooks = HookSet([Damp(factor=0.5, stage=MyPipelineStage.AFTER_PROCESS)])
    hooks.check_stages(None)
    ctx, _ = hooks.run_traced(HookContext(batch=batch, step_count=0), MyPipelineStage.AFTER_PROCESS, (None,))
    assert ctx.batch is batch or (ctx.batch.velocities == batch.velocities).all()
