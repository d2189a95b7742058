"""Nosé-Hoover chains: the thermostat that `NVTNoseHoover` and `NPT` share."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from alchemi_jax.dynamics.updates import by_system
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import per_system
from alchemi_jax.units import KB


#: Weights of Suzuki and Yoshida: three steps with them make a second-order splitting fourth order.
_OUTER = 1 / (2 - 2 ** (1 / 3))
_WEIGHTS = (_OUTER, 1 - 2 * _OUTER, _OUTER)


class Chain(eqx.Module):
    """Rates xi_1 ... xi_M of the links (1/fs), the energy that the thermostat has taken up (eV), and the
    number of degrees of freedom that it acts on. One chain per system, or one for each of its `parts`."""

    rates: Float[Array, "systems *parts links"] = per_system()
    heat: Float[Array, "systems *parts"] = per_system()
    count: Float[Array, "systems *parts"] = per_system()


def new_chain(batch: Batch, links: int, count: Num[Array, "systems *parts"]) -> Chain:
    """A chain at rest for each entry of count, [systems] or [systems, parts]."""
    count = jnp.asarray(count).astype(batch.dtype)
    return Chain(jnp.zeros((*count.shape, links), batch.dtype), jnp.zeros_like(count), count)


def inertia(batch: Batch, chain: Chain, temperature: Any, time: Any) -> Float[Array, "systems *parts links"]:
    """Q_1 = N k_B T tau² and Q_k = k_B T tau² for the other links, eV fs², in the shape of the rates."""
    one = KB * by_system(batch, temperature) * by_system(batch, time) ** 2
    one = jnp.broadcast_to(one if chain.count.ndim == 1 else one[:, None], chain.count.shape)
    first = jnp.maximum(chain.count, 1) * one
    return jnp.stack([first] + [one] * (chain.rates.shape[-1] - 1), axis=-1)


def chain_energy(chain: Chain, inertia: Float[Array, "systems *parts links"]) -> Float[Array, " systems"]:
    """Energy in the thermostats, [systems], eV: the heat taken up and the sum of Q_k xi_k²/2."""
    energy = chain.heat + jnp.sum(inertia * chain.rates**2, axis=-1) / 2
    return energy if energy.ndim == 1 else jnp.sum(energy, axis=-1)


def scale_chain(chain: Chain, factor: Float[Array, " systems"]) -> Chain:
    """The chain with the rates of each system multiplied by a factor, for another temperature."""
    wide = factor.reshape(-1, *(1,) * (chain.rates.ndim - 1))
    return Chain(chain.rates * wide, chain.heat, chain.count)


def advance_chain(
    chain: Chain,
    inertia: Float[Array, "systems *parts links"],
    double: Float[Array, "systems *parts"],
    kt: Float[Array, " systems"],
    dt: Float[Array, " systems"],
) -> tuple[Float[Array, "systems *parts"], Chain]:
    """The chain after dt, and the factor by which it scales the velocities that it acts on.

    Args:
        inertia: Q, eV fs².  double: twice the kinetic energy, eV, in the shape of the count.
        kt: k_B T, eV, [systems].  dt: fs, [systems].
    """
    if chain.count.ndim == 2:
        kt, dt = kt[:, None], dt[:, None]
    kt, dt = jnp.broadcast_to(kt, double.shape), jnp.broadcast_to(dt, double.shape)
    links = chain.rates.shape[-1]
    xi = [chain.rates[..., k] for k in range(links)]
    q = [inertia[..., k] for k in range(links)]
    goal = chain.count * kt
    heat, scale = chain.heat, jnp.ones_like(double)

    def pull(k: int, h: Float[Array, "systems *parts"]) -> Float[Array, "systems *parts"]:
        surplus = double * scale**2 - goal if k == 0 else q[k - 1] * xi[k - 1] ** 2 - kt
        rate = xi[k]
        if k < links - 1:
            half = jnp.exp(-h / 4 * xi[k + 1])
            return (rate * half + h / 2 * surplus / q[k]) * half
        return rate + h / 2 * surplus / q[k]

    for weight in _WEIGHTS:
        h = weight * dt
        for k in reversed(range(links)):
            xi[k] = pull(k, h)
        scale = scale * jnp.exp(-h * xi[0])
        heat = heat + h * (goal * xi[0] + kt * sum(xi[1:], jnp.zeros_like(kt)))
        for k in range(links):
            xi[k] = pull(k, h)
    return scale, Chain(jnp.stack(xi, axis=-1), heat, chain.count)


__all__ = ["Chain", "advance_chain", "chain_energy", "inertia", "new_chain", "scale_chain"]
