"""InvariantNetwork: a small network on distances, for a first potential of one's own."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Array, Float, PRNGKeyArray

from alchemi_jax.errors import description
from alchemi_jax.models.angles import POWERS, sums_of_angles
from alchemi_jax.models.base import (
    AbstractModel,
    Results,
    mask_atoms,
    need_list,
    per_volume,
    virial_by_system,
)
from alchemi_jax.models.elements import atomic_number, check_elements, types_of
from alchemi_jax.neighbors import NeighborList, pair_vectors
from alchemi_jax.parameters import as_key, finite, natural, number, positive, positive_length
from alchemi_jax.products import einsum
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.segments import sum_by_system


#: Å: the center of the first Gaussian; atoms do not come nearer.
_NEAREST = 0.5
Layers = tuple[tuple[Float[Array, "elements inputs outputs"], Float[Array, "elements outputs"]], ...]


class InvariantNetwork(AbstractModel):
    """A network for the energy of each atom, on sums of Gaussians of the distances to its neighbors.

        E = sum_i [ e(z_i) + scale N_zi( (g_i - mean) / spread ) ]
        g_i,z,n = sum_j in z exp(-(r_ij - c_n)² / 2 w²) (1 + cos(pi r_ij / rc)) / 2

    N is a perceptron with a set of weights for each element of the atom; z runs over the elements of the
    neighbors, c_n over centers from 0.5 Å to the cutoff, w apart. Distances alone are enough for simple
    metals and noble gases, not for covalent bonds. With `angular` Gaussians m of another width the input also
    has angles, as sums over pairs of neighbors, for l = 1, 2, 3:

        a_i,m,m',l = sum_jk g_m(r_ij) g_m'(r_ik) cos^l(angle j i k)

    They are computed from sums over single neighbors, so that the work grows with the number of neighbors and
    not of pairs. Work and memory grow with the number of elements; with angles, as its square.
    `alchemi_jax.training.network_for(data, key=key)` prepares one for data.

    Args:
        elements: symbols or atomic numbers.
        key: PRNG key of the initial weights.
        cutoff: rc, Å.
        gaussians: number of Gaussians of distances.
        hidden: widths of the hidden layers.
        energies: e of each element in order, eV; zero by default.
        scale: factor on the output of the network, eV.
        angular: number of Gaussians for angles; 0: no angles.
        mean, spread: of each g and a, [elements, `n_features`], for each element of the atom; zero and one
            by default.
        skin: Å, added to the cutoff of the neighbor list.

    `layers` are trained; `energies`, `scale`, `mean` and `spread` only where a training names them.

    Raises:
        ValueError: naming the argument; from `check`, naming a system with another element.

    Source: after the networks of J. Behler, M. Parrinello, Phys. Rev. Lett. 98, 146401 (2007),
    doi:10.1103/PhysRevLett.98.146401.
    """

    untrained: ClassVar[tuple[str, ...]] = ("energies", "scale", "mean", "spread")
    elements: tuple[str, ...] = eqx.field(static=True)
    cutoff: float = eqx.field(static=True)
    gaussians: int = eqx.field(static=True)
    angular: int = eqx.field(static=True)
    energies: Float[Array, " elements"] = eqx.field(repr=False)
    scale: Float[Array, ""]
    mean: Float[Array, "elements features"] = eqx.field(repr=False)
    spread: Float[Array, "elements features"] = eqx.field(repr=False)
    layers: Layers = eqx.field(repr=False)
    skin: float = eqx.field(static=True)

    def __init__(
        self,
        elements: Sequence[str | int],
        *,
        key: PRNGKeyArray,
        cutoff: float = 6.0,
        gaussians: int = 32,
        hidden: Any = (32, 32),
        angular: int = 0,
        energies: Any = None,
        scale: Any = 1.0,
        mean: Any = None,
        spread: Any = None,
        skin: float = 1.0,
    ):
        names = tuple(elements) if isinstance(elements, Iterable) else (elements,)
        names = (elements,) if isinstance(elements, str) else names
        self.elements = tuple(chemical_symbols[atomic_number(e)] for e in names)
        n = len(self.elements)
        if not n or len(set(self.elements)) < n:
            raise ValueError(f"elements of an InvariantNetwork must be different ones, not {list(names)}.")
        self.cutoff = positive_length("cutoff")(cutoff)
        self.skin = positive_length("skin", zero=True)(skin)
        self.gaussians = natural("gaussians")(gaussians)
        zero = angular == 0 and not isinstance(angular, bool)
        self.angular = 0 if zero else natural("angular")(angular)
        features = self.n_features
        self.energies = _array("energies", energies, (n,), 0.0)
        self.scale = number("scale")(scale)
        self.mean = _array("mean", mean, (n, features), 0.0)
        self.spread = positive("spread")(_array("spread", spread, (n, features), 1.0))
        if isinstance(hidden, str) or not isinstance(hidden, Sequence):
            raise TypeError(f"hidden must be a list of widths, not {description(hidden)}.")
        widths = [features, *(natural("hidden")(width) for width in hidden), 1]
        key = as_key(key)
        layers = []
        for a, b in itertools.pairwise(widths):
            key, mine = jax.random.split(key)
            layers.append((jax.random.normal(mine, (n, a, b)) / np.sqrt(a), jnp.zeros((n, b))))
        self.layers = tuple(layers)

    @property
    def n_features(self) -> int:
        """Number of inputs of the network per atom."""
        n, m = len(self.elements), len(self.elements) * self.angular
        return n * self.gaussians + len(POWERS) * m * (m + 1) // 2

    def check(self, batch: Batch) -> None:
        check_elements(self, batch, "parameters", self._numbers)

    @property
    def _numbers(self) -> tuple[int, ...]:
        return tuple(atomic_number(name) for name in self.elements)

    def _gaussians(self, r: Float[Array, "*pairs"], number: int | None = None) -> Float[Array, "*pairs n"]:
        number = self.gaussians if number is None else number
        c = np.linspace(_NEAREST, self.cutoff, number, dtype=np.dtype(r.dtype))
        c = c.reshape(*(1,) * r.ndim, -1)
        width = (self.cutoff - _NEAREST) / max(number - 1, 1)
        smooth = (1 + jnp.cos(np.pi / self.cutoff * r)) / 2
        x = (r[..., None] - c) / width
        return jnp.exp(-x * x / 2) * smooth[..., None]

    def _pairs(self, batch: Batch, neighbors: NeighborList) -> tuple[Any, ...]:
        """x, y, z and r of the pairs, [neighbors, atoms], and for each element which neighbors are of it."""
        x, y, z, inside = pair_vectors(batch, neighbors)
        squared = x * x + y * y + z * z
        # Pairs beyond the cutoff have a distance there, so that no gradient is NaN.
        r = jnp.sqrt(jnp.where(inside & (squared > 0), squared, self.cutoff**2))
        other = jnp.minimum(neighbors.neighbor_atom(), batch.atom_capacity - 1)
        kinds = types_of(self._numbers, batch.numbers)[other]
        of = [inside & (kinds == k) for k in range(len(self.elements))]
        return (x, y, z), r, inside, of

    def _features(self, g: Float[Array, "neighbors atoms n"], of: Any) -> Float[Array, "atoms features"]:
        return jnp.concatenate([jnp.where(there[..., None], g, 0).sum(axis=0) for there in of], axis=-1)

    def features(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, "atoms features"]:
        """The sums of Gaussians around each atom, [atoms, `n_features`], before `mean` and `spread` are
        applied."""
        neighbors = need_list(self, neighbors)
        d, r, _, of = self._pairs(batch, neighbors)
        of_distances = self._features(self._gaussians(r), of)
        if not self.angular:
            return of_distances
        g = self._gaussians(r, self.angular)
        g = jnp.concatenate([jnp.where(there[..., None], g, 0) for there in of], axis=-1)
        return jnp.concatenate([of_distances, sums_of_angles(g, *(c / r for c in d))], axis=-1)

    def _of_features(self, batch: Batch, features: Float[Array, "atoms n"]) -> Float[Array, " atoms"]:
        """Energies of atoms, eV, without those of the elements."""
        kinds = types_of(self._numbers, batch.numbers)
        total = jnp.zeros(features.shape[0], features.dtype)
        mean, spread = self.mean, self.spread
        for k in range(len(self.elements)):
            h = (features - mean[k].astype(features.dtype)[None]) / spread[k].astype(features.dtype)[None]
            for n, (w, b) in enumerate(self.layers):
                h = einsum("ai,io->ao", h, w[k].astype(h.dtype)) + b[k].astype(h.dtype)[None]
                h = h if n == len(self.layers) - 1 else jax.nn.silu(h)
            total = total + jnp.where(kinds == k, h[:, 0], 0)
        return total * self.scale.astype(features.dtype)

    def _sum(self, batch: Batch, energies: Float[Array, " atoms"]) -> Float[Array, " systems"]:
        own = self.energies[types_of(self._numbers, batch.numbers)]
        return sum_by_system(batch, jnp.where(batch.atom_mask, energies + own.astype(energies.dtype), 0))

    def node_energies(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " atoms"]:
        """The energy of each atom, eV; zero in padding."""
        own = self.energies[types_of(self._numbers, batch.numbers)].astype(batch.dtype)
        energies = self._of_features(batch, self.features(batch, neighbors)) + own
        return jnp.where(batch.atom_mask, energies, 0)

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        return self._sum(batch, self._of_features(batch, self.features(batch, neighbors)))

    def evaluate(self, batch: Batch, neighbors: NeighborList | None, *, stress: bool = False) -> Results:
        if self.angular:
            return super().evaluate(batch, neighbors, stress=stress)
        # Gaussians and their slopes do not depend on the weights: a training takes each of them once.
        neighbors = need_list(self, neighbors)
        d, r, inside, of = self._pairs(batch, neighbors)
        g, slope = jax.jvp(self._gaussians, (r,), (jnp.ones_like(r),))

        def total(features: Float[Array, "atoms n"]) -> tuple[Float[Array, ""], Float[Array, " atoms"]]:
            energies = self._of_features(batch, features)
            return jnp.where(batch.atom_mask, energies, 0).sum(), energies

        pulls, energies = jax.grad(total, has_aux=True)(self._features(g, of))
        n = self.gaussians
        # dE/dr of each pair, over r.
        u = jnp.zeros_like(r)
        for k, there in enumerate(of):
            part = jnp.sum(slope * pulls[None, :, k * n : (k + 1) * n], axis=-1)
            u = u + jnp.where(there, part, 0)
        u = jnp.where(inside, u / r, 0)
        f = [u * c for c in d]
        own = jnp.stack([c.sum(axis=0) for c in f], axis=-1)
        other = neighbors.neighbor_atom()
        back = jnp.stack([c.reshape(-1) for c in f], axis=-1)
        forces = own - jax.ops.segment_sum(back, other.reshape(-1), batch.atom_capacity)
        energy = self._sum(batch, energies)
        if not stress:
            return Results(energy, mask_atoms(batch, forces), None)
        x, y, z = d
        terms = (f[0] * x, f[1] * y, f[2] * z, f[1] * z, f[0] * z, f[0] * y)
        sums = tuple(jnp.where(batch.atom_mask, t.sum(axis=0), 0) for t in terms)
        return Results(energy, mask_atoms(batch, forces), per_volume(batch, virial_by_system(batch, sums)))


def _array(name: str, given: Any, shape: tuple[int, ...], default: float) -> Float[Array, "..."]:
    value = finite(name)(jnp.full(shape, default, float) if given is None else given)
    # An array of numpy is one of JAX from here on, and numbers of Python are of the default precision.
    value = jnp.asarray(value, float if isinstance(given, list | tuple) else None)
    if value.shape != shape:
        raise ValueError(f"{name} of an InvariantNetwork must be {list(shape)}, not {list(value.shape)}.")
    return value


__all__ = ["InvariantNetwork"]
