"""Analysis of trajectories: numpy in, numpy out.

traj = Trajectory("traj.zarr")
r, g = radial_distribution_function(traj.to_ase(slice(100, None)), r_max=8.0)
msd = mean_squared_displacement(traj.system(0).positions)
print(block_average(traj.system(0).energy))
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.geometry import complete_cell
from jaxtyping import Float


try:
    from matscipy.neighbours import neighbour_list as _neighbor_list
except ImportError:
    from ase.neighborlist import neighbor_list as _neighbor_list


class RadialDistribution(NamedTuple):
    """A radial distribution function.

    Attributes:
        r: [bins], middles of the shells, Å.
        g: [bins], pair density divided by that of an ideal gas.
    """

    r: Float[np.ndarray, " bins"]
    g: Float[np.ndarray, " bins"]


def radial_distribution_function(
    structures: Atoms | Iterable[Atoms],
    r_max: float | int = 10.0,
    bins: int = 200,
    species: tuple[str | int, str | int] | None = None,
) -> RadialDistribution:
    """The radial distribution function g(r), averaged over structures. All images within `r_max` count, in
    cells of any size.

    The sum over shells of g times the volume of the shell times the density of the second species is exactly
    the number of its atoms within r of an atom of the first. In an ideal gas of N atoms g is 1 - 1/N.

    Args:
        structures: ASE structures of any size, periodic in all directions.
        r_max: largest distance, Å.
        bins: number of shells of equal width.
        species: a pair of elements, `("O", "H")`: atoms of the second around atoms of the first. By default
            all atoms around all atoms.

    Raises:
        ValueError: if a structure is not periodic, or no structure has the species.
    """
    if not r_max > 0 or bins < 1:
        raise ValueError(f"r_max and bins must be positive, not {r_max} and {bins}.")
    edges = np.linspace(0.0, r_max, bins + 1)
    counts, ideal = np.zeros(bins), 0.0
    wanted = None if species is None else [_number(s) for s in species]
    for k, atoms in enumerate([structures] if isinstance(structures, Atoms) else structures):
        if not atoms.pbc.all():
            raise ValueError(f"Structure {k} is not periodic in all directions: it has no density.")
        i, j, d = _neighbor_list("ijd", atoms, float(r_max))
        first = second = len(atoms)
        if wanted is not None:
            a, b = (atoms.numbers == number for number in wanted)
            d = d[a[i] & b[j]]
            first, second = int(a.sum()), int(b.sum())
        counts += np.histogram(d, edges)[0]
        ideal += first * second / atoms.get_volume()
    if not ideal:
        what = "structures" if species is None else f"atoms of both {species[0]} and {species[1]}"
        raise ValueError(f"There are no {what} to take a radial distribution of.")
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    return RadialDistribution((edges[1:] + edges[:-1]) / 2, counts / (ideal * shells))


def _number(element: str | int) -> int:
    if isinstance(element, str):
        if element not in atomic_numbers:
            raise ValueError(f"{element!r} is no element.")
        return atomic_numbers[element]
    return int(element)


def unwrap(positions: Any, cell: Any, pbc: Any = True) -> Float[np.ndarray, "frames atoms 3"]:
    """Positions, [frames, atoms, 3], without the jumps of wrapped atoms: no atom moves more than half a cell
    between frames.

    Trajectories of this package need it only after a run with a WrapPeriodicHook.

    Args:
        positions: [frames, atoms, 3], Å.
        cell: [3, 3] or [frames, 3, 3], Å. Vectors of directions that are not periodic may be zero.
        pbc: [3], along which lattice vectors.

    Raises:
        ValueError: for positions of another shape, or a cell without volume along its periodic directions.
    """
    positions, cell = _frames(positions, "positions"), np.asarray(cell, float)
    periodic = np.broadcast_to(np.asarray(pbc, bool), 3)
    # Atoms do not jump along the other directions: any vectors will do there.
    given = np.broadcast_to(cell, (len(positions), 3, 3))
    cell = np.where(periodic[:, None], given, 0)
    known = {frame.tobytes(): complete_cell(frame) for frame in cell}
    cell = np.array([known[frame.tobytes()] for frame in cell])
    ranks = np.linalg.matrix_rank(np.where(periodic[:, None], given, 0))
    if (ranks < periodic.sum()).any() or not np.isfinite(cell).all():
        raise ValueError("unwrap needs independent lattice vectors along the periodic directions.")
    scaled = np.einsum("fai,fij->faj", positions, np.linalg.inv(cell))
    jumps = np.round(np.diff(scaled, axis=0)) * periodic
    scaled[1:] -= np.cumsum(jumps, axis=0)
    return np.einsum("fai,fij->faj", scaled, cell)


def mean_squared_displacement(positions: Any) -> Float[np.ndarray, " frames"]:
    """Mean squared displacement |x(t + lag) - x(t)|², Å², over atoms and origins t, for lags of 0, 1, ...
    frames, [frames].

    Frames must be equally spaced. Late lags have few origins: half of the frames is a usual limit.

    Args:
        positions: [frames, atoms, 3], Å, unwrapped (`unwrap`). Drift is not removed.

    Source: the sums by Fourier transforms are those of Calandrini et al., Collection SFN 12, 201 (2011),
    doi:10.1051/sfn/201112010.
    """
    x = _frames(positions, "positions")
    # The result does not depend on the origin, but its rounding error does.
    x = x - x.mean(axis=0)
    squares = np.sum(x**2, axis=-1)
    n = len(x)
    ahead = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(squares, axis=0)])
    lags = np.arange(n)
    # Sums over t = 0 .. n - lag - 1 of |x(t)|² and of |x(t + lag)|².
    both = ahead[n - lags] + ahead[n] - ahead[lags]
    out = np.mean(both / (n - lags)[:, None], axis=1) - 2 * _correlation(x)
    out[0] = 0.0
    return np.maximum(out, 0.0)


def velocity_autocorrelation(velocities: Any, normalize: bool = False) -> Float[np.ndarray, " frames"]:
    """Mean of v(t) · v(t + lag), Å²/fs², over atoms and origins, for lags of 0, 1, ... frames, [frames].

    Args:
        velocities: [frames, atoms, 3], Å/fs, equally spaced frames.
        normalize: whether to divide by the value at lag 0.
    """
    out = _correlation(_frames(velocities, "velocities"))
    return out / out[0] if normalize else out


def _frames(values: Any, name: str) -> Float[np.ndarray, "frames atoms 3"]:
    values = np.asarray(values, float)
    if values.ndim != 3 or values.shape[-1] != 3 or not values.size:
        raise ValueError(f"{name} must be [frames, atoms, 3], not of shape {values.shape}.")
    return values


def _correlation(x: Float[np.ndarray, "frames atoms 3"]) -> Float[np.ndarray, " frames"]:
    """Mean over atoms and origins of x(t) · x(t + lag), by Fourier transforms padded with zeros."""
    n = len(x)
    power = np.abs(np.fft.rfft(x, 2 * n, axis=0)) ** 2
    sums = np.fft.irfft(power.sum(axis=(1, 2)), 2 * n)[:n]
    return sums / (x.shape[1] * (n - np.arange(n)))


class BlockAverage(NamedTuple):
    """A mean and its standard error.

    Attributes:
        mean: in the unit of the series.
        error: standard error of the mean, NaN for less than two samples.
        converged: whether the series is long enough for the error; if not, `error` is a lower bound.
    """

    mean: float
    error: float
    converged: bool

    def __str__(self) -> str:
        return f"{self.mean:.6g} ± {self.error:.2g}" + ("" if self.converged else " (at least)")


def block_average(series: Any) -> BlockAverage:
    """Mean of correlated samples, with its standard error by blocking.

    Neighboring samples are averaged in pairs, repeatedly. The error computed as if blocks were independent
    grows until they are. It is taken from the smallest blocks of B samples with B³ > 2 n (error of blocks /
    error of samples)⁴.

    Args:
        series: [samples], equally spaced.

    Raises:
        ValueError: if the series is empty, has another shape, or has values that are not finite.

    Source: Flyvbjerg, Petersen, J. Chem. Phys. 91, 461 (1989), doi:10.1063/1.457480; size of the blocks: Lee
    et al., Phys. Rev. E 83, 066706 (2011), doi:10.1103/PhysRevE.83.066706.
    """
    x = np.asarray(series, float)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"block_average takes a series of at least one sample, not shape {x.shape}.")
    if not np.isfinite(x).all():
        bad = int(np.argmin(np.isfinite(x)))
        raise ValueError(f"block_average needs finite samples; number {bad} is {x[bad]}.")
    mean, n, size = float(x.mean()), len(x), 1
    if n < 2:
        return BlockAverage(mean, float("nan"), False)
    errors: list[float] = []
    while len(x) >= 2:
        errors.append(float(np.sqrt(x.var() / (len(x) - 1))))
        if errors[0] <= 1e-14 * max(abs(mean), 1e-300):
            return BlockAverage(mean, errors[0], True)
        if size**3 > 2 * n * (errors[-1] / errors[0]) ** 4:
            return BlockAverage(mean, errors[-1], True)
        x = (x[: len(x) // 2 * 2 : 2] + x[1::2]) / 2
        size *= 2
    # With few blocks the error is too uncertain.
    enough = [e for k, e in enumerate(errors) if n >> k >= 8] or errors[:1]
    return BlockAverage(mean, max(enough), False)


__all__ = [
    "BlockAverage",
    "RadialDistribution",
    "block_average",
    "mean_squared_displacement",
    "radial_distribution_function",
    "unwrap",
    "velocity_autocorrelation",
]
