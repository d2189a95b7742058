"""split_nnx: a flax.nnx module as a function and its parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx


@dataclasses.dataclass(frozen=True)
class _Call:
    """A module without its state, as a function. Equal for modules of one structure."""

    graph: Any

    def __call__(self, state: Any, *inputs: Any) -> Any:
        return nnx.merge(self.graph, state)(*inputs)


def split_nnx(module: Any) -> tuple[Callable[..., Any], Any]:
    """A `flax.nnx` module as `function, params`, for `GraphFunctionModel` and `FunctionModel`.

        GraphFunctionModel(*split_nnx(net), cutoff=5.0)

    `nnx.update(net, model.params)` puts parameters back into the module. Changes that a call makes to the
    module (running means, counts of random numbers) are dropped.

    Args:
        module: its `__call__` takes the graph, or the batch and its neighbor list.

    Returns:
        `function(params, *inputs)`, and the state of the module, a pytree of arrays.

    Raises:
        TypeError: if `module` is not a `flax.nnx.Module`.
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(f"module must be a flax.nnx.Module, not {module!r}.")
    graph, state = nnx.split(module)
    return _Call(graph), state


__all__ = ["split_nnx"]
