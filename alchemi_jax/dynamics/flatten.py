"""The parts of a pipeline from a list of engines, some of which may be pipelines themselves."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import equinox as eqx

from alchemi_jax.dynamics.algorithm import Algorithm
from alchemi_jax.errors import description
from alchemi_jax.hooks import HookSet
from alchemi_jax.transforms import is_traced


def flatten(
    stages: Iterable[Any], inner: tuple[HookSet, ...], inner_codes: tuple[tuple[int, ...], ...]
) -> tuple[list[Any], tuple[HookSet, ...], tuple[tuple[int, ...], ...]]:
    """The engines of a pipeline, those of pipelines among them one by one, with the hooks of these and the
    parts that the hooks see.

    Raises:
        TypeError, ValueError: see `FusedStage`.
    """
    flat: list[Any] = []
    if not isinstance(stages, Iterable) or isinstance(stages, type):
        raise TypeError(f"stages of FusedStage must be a list of engines, not {description(stages)}.")
    for given in stages:
        if not isinstance(given, Algorithm):
            raise TypeError(f"a stage of FusedStage must be an engine, not a {type(given).__name__}.")
        stage: Any = given
        if hasattr(stage, "inner_codes"):
            if stage.n_steps is not None:
                raise ValueError(
                    "a pipeline within a pipeline cannot have n_steps of its own: "
                    "give each of its stages one."
                )
            codes = tuple(range(len(flat), len(flat) + stage.n_stages))
            inner += (stage.hooks, *stage.inner) if len(stage.hooks) else stage.inner
            moved = tuple(tuple(c + len(flat) for c in own) for own in stage.inner_codes)
            inner_codes += (codes, *moved) if len(stage.hooks) else moved
        if stage.rescue is not None:
            parts = [p if p.rescue else dataclasses.replace(p, rescue=stage.rescue) for p in stage.parts]
        else:
            parts = stage.parts
        flat.extend(parts)
    if not flat:
        raise ValueError("FusedStage needs at least one stage.")
    first = flat[0].model
    for stage in flat[1:]:
        same = stage.model is first or is_traced((stage.model, first)) or eqx.tree_equal(stage.model, first)
        if not same:
            raise ValueError(
                f"{type(flat[0]).__name__} and {type(stage).__name__} share one model evaluation per "
                "step, but their models differ. Pass the same model object to both."
            )
    return flat, inner, inner_codes


__all__ = ["flatten"]
