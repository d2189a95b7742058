"""A fit to a noisy signal, by derivatives through the dynamics."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE
from alchemi_jax.models import Morse


jax.config.update("jax_enable_x64", True)
batch = Batch.from_ase(Atoms("Cu2", [[0, 0, 0], [0, 0, 3.0]]))
names = ("depth", "width", "r0")
true = np.array([2.0, 1.4, 2.22])  # eV, 1/Å, Å
like = NVE(Morse(*true), dt=2.0).init(batch)


def signal(logs):
    """The bond length every 8 fs, Å, and once more for has_aux."""
    engine = NVE(Morse(*jnp.exp(logs)), dt=2.0)

    def go(state, _):
        state = engine.rollout(state, 4)
        r = state.batch.positions
        return state, jnp.linalg.norm(r[1] - r[0])

    start = engine.init(batch, like=like)
    lengths = jax.lax.scan(go, start, length=40)[1]
    return lengths, lengths


both = jax.jit(jax.jacfwd(signal, has_aux=True))
noise = np.random.default_rng(0).normal(0, 0.02, 40)
measured = both(np.log(true))[1] + noise
path = [np.log([1.5, 1.5, 2.35])]
for _ in range(5):  # Gauss-Newton
    jacobian, found = both(path[-1])
    path.append(path[-1] + np.linalg.lstsq(jacobian, measured - found)[0])

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
time = 8 * np.arange(1, 41)
left.plot(time, measured, "k.", label="signal with noise")
left.plot(time, both(path[0])[1], "--", label="first guess")
left.plot(time, both(path[-1])[1], label="fit")
left.set(xlabel="time (fs)", ylabel="bond length (Å)", ylim=(1.75, 3.4))
left.legend(frameon=False, loc="upper center", fontsize=8, ncols=2)
right.plot(np.exp(path) / true, "o-", label=names)
right.axhline(1, color="black", ls=":")
right.set(xlabel="iteration", ylabel="parameter over the true one")
right.legend(frameon=False)
fig.savefig("fit.png", dpi=110)
