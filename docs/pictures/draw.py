"""Draws the pictures of the README and of the site.

`python docs/pictures/draw.py` draws all of them, `python docs/pictures/draw.py
speed` one. The atoms are those of a run, the speeds those of
`benchmarks/results`.
"""

import argparse
import io
import json
from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image


HERE = Path(__file__).parent
RESULTS = HERE.parent.parent / "benchmarks" / "results"
#: Light, so that the pictures can be read on a dark page, too.
PAPER, INK, FAINT = "#fbfbf8", "#22303c", "#8a949c"
BLUE, ORANGE, GREEN, GREY = "#3f7cac", "#d98c3f", "#5b9b6b", "#dfe2e0"
METALS = {"Cu": "#c9773d", "Au": "#e3b93c", "Pt": "#a9b4c2", "O": "#c8412f"}
RADII = {"Cu": 1.28, "Au": 1.44, "Pt": 1.39, "O": 0.75}


def save(figure, name):
    """Writes a small PNG: 128 colors are enough."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, facecolor=PAPER)
    plt.close(figure)
    image = Image.open(drawn).convert("RGB")
    # The metadata of the date would make each drawing another file.
    image.quantize(128, dither=Image.Dither.NONE).save(HERE / name, optimize=True)
    print(HERE / name, image.size)


def blank(width, height):
    """A figure of one panel in units of its own: 100 wide, no axes."""
    figure = plt.figure(figsize=(width, height), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100 * height / width)
    axes.set_aspect("equal")
    axes.axis("off")
    return figure, axes


def say(axes, x, y, text, size, color=INK, **more):
    """A text whose middle is at the height y."""
    axes.text(x, y, text, fontsize=size, color=color, va="center", **more)


def box(axes, x, y, width, height, round_, **more):
    """A rectangle with round corners."""
    style = f"round,pad=0,rounding_size={round_}"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, **more))


# -- Atoms before and after a relaxation ----------------------------------


def structures():
    """A cluster, a slab with oxygen and a crystal with a vacancy, rattled."""
    from ase.build import add_adsorbate, bulk, fcc111
    from ase.cluster import Icosahedron

    cluster = Icosahedron("Au", 3)
    cluster.symbols[[i for i in range(len(cluster)) if i % 4 == 1]] = "Cu"
    slab = fcc111("Pt", (4, 4, 3), vacuum=8.0, orthogonal=True)
    for x, y in ((0.0, 0.0), (5.55, 4.8)):
        add_adsorbate(slab, "O", 1.3, position=(x + 1.39, y + 0.8))
    crystal = bulk("Cu", cubic=True).repeat((3, 3, 3))
    del crystal[62]
    for seed, (atoms, size) in enumerate(((cluster, 0.5), (slab, 0.3), (crystal, 0.35))):
        atoms.rattle(size, seed=seed)
    return [cluster, slab, crystal]


def ball(axes, x, y, radius, color, order):
    """A shaded circle."""
    color = np.array(to_rgb(color))
    for part, light in ((1.0, -0.35), (0.93, 0.0), (0.72, 0.12), (0.48, 0.26), (0.25, 0.45)):
        shade = color * (1 + light) if light < 0 else color + (1 - color) * light
        shift = 0.3 * radius * (1 - part)
        axes.add_patch(Circle((x - shift, y + shift), radius * part, color=shade, lw=0, zorder=order))


def show(axes, atoms, center, tilt=(-72, 0, 12), scale=1.0):
    """Draws balls from the farthest to the nearest; `center` is that of the picture."""
    turned = atoms.copy()
    turned.positions -= center
    turned.rotate(tilt[2], "z", rotate_cell=False)
    turned.rotate(tilt[0], "x", rotate_cell=False)
    near = np.argsort(turned.positions[:, 2])
    for order, i in enumerate(near):
        x, y, _ = turned.positions[i]
        ball(axes, x, y, 0.95 * RADII[turned.symbols[i]], METALS[turned.symbols[i]], order + 1)
    axes.set_aspect("equal")
    axes.set_xlim(-9.5 * scale, 9.5 * scale)
    axes.set_ylim(-7.4 * scale, 7.4 * scale)
    axes.axis("off")


def atoms():
    """Three structures in one batch, before and after FIRE with EMT."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from alchemi_jax.dynamics import FIRE, ConvergenceHook
    from alchemi_jax.models import EMT, evaluate

    before = structures()
    first = evaluate(EMT(), before)
    engine = FIRE(EMT(), n_steps=1000, hooks=[ConvergenceHook.from_fmax(0.01)])
    batch = engine.run(before)
    print(batch)
    done, after = batch.to_host(), batch.to_ase()
    titles = ("Au-Cu cluster, 55 atoms", "O on Pt(111), 50 atoms", "Cu with a vacancy, 107 atoms")
    figure, panels = plt.subplots(2, 3, figsize=(8.6, 4.9), facecolor=PAPER)
    figure.subplots_adjust(left=0.045, right=0.995, top=0.93, bottom=0.05, wspace=0.02, hspace=0.16)
    offset = np.cumsum([0, *(len(a) for a in before)])
    for i, title in enumerate(titles):
        forces = np.asarray(first.forces)[offset[i] : offset[i + 1]]
        rows = (
            (before[i], float(first.energy[i]), np.linalg.norm(forces, axis=1).max()),
            (after[i], float(done.energy[i]), np.linalg.norm(after[i].get_forces(), axis=1).max()),
        )
        tilts = ((-72, 0, 12), (-62, 0, 16), (-72, 0, 22))
        center = after[i].positions.mean(axis=0)
        for row, (seen, energy, fmax) in enumerate(rows):
            panel = panels[row, i]
            show(panel, seen, center, tilts[i], scale=(0.95, 1.03, 1.12)[i])
            said = f"{energy:.1f} eV   fmax {fmax:.{0 if fmax > 10 else 4}f} eV/Å"
            said += f"   {int(done.steps_taken[i])} steps" if row else ""
            panel.text(0.5, -0.07, said, transform=panel.transAxes, ha="center", fontsize=8.5, color=INK)
        panels[0, i].set_title(title, fontsize=10.5, color=INK)
    for row, word in enumerate(("before", "after")):
        place = {"transform": panels[row, 0].transAxes, "rotation": 90}
        say(panels[row, 0], -0.06, 0.5, word, 11, FAINT, **place)
    save(figure, "atoms.png")


# -- A step with its stages and hooks --------------------------------------

#: What stands on the left of a step, and what hooks usually do there.
STAGES = [
    ("BEFORE_STEP", "schedules of temperature and pressure, replica exchange"),
    ("BEFORE_PRE_UPDATE", ""),
    ("pre_update", "the algorithm before the forces: half kick, drift"),
    ("AFTER_PRE_UPDATE", ""),
    ("BEFORE_COMPUTE", "fixed atoms"),
    ("compute", "neighbor list, energy, forces"),
    ("AFTER_COMPUTE", "force clamps, restraints, biases"),
    ("BEFORE_POST_UPDATE", ""),
    ("post_update", "the algorithm after the forces: half kick"),
    ("AFTER_POST_UPDATE", "atoms back into the cell"),
    ("AFTER_STEP", "convergence, guards, logs; then steps are counted"),
    ("ON_CONVERGE", "only if a system newly converged: snapshots"),
]


def step():
    """The order of a step; where the three kinds of hook are called."""
    figure, axes = blank(8.2, 6.9)
    top, gap = 73.5, 4.6
    low = top - gap * (len(STAGES) - 1)
    box(axes, 4, low - 3.6, 92, top - low + 10.4, 2, fc="#f1f4f4", ec=BLUE, lw=1.6)
    say(axes, 7, top + 3.7, "one step, compiled", 11, BLUE, weight="bold")
    act = "traced hooks change the run, recording hooks buffer rows"
    say(axes, 93, top + 3.7, act, 9, BLUE, ha="right")
    axes.plot([11, 11], [top, low], color=FAINT, lw=1.2, zorder=1)
    for i, (name, what) in enumerate(STAGES):
        y = top - gap * i
        if name.islower():
            box(axes, 8.4, y - 1.7, 26, 3.4, 0.9, fc=ORANGE, ec="none", zorder=2)
            white = {"color": "white", "weight": "bold", "ha": "center", "zorder": 3}
            say(axes, 21.4, y - 0.05, name, 10.5, family="monospace", **white)
        else:
            axes.add_patch(Circle((11, y), 0.8, fc=PAPER, ec=BLUE, lw=1.6, zorder=2))
            say(axes, 13.6, y, name, 9.5, family="monospace")
        say(axes, 38, y, what, 9.3)
    box(axes, 4, 2, 92, 7.6, 2, fc="#eff5ef", ec=GREEN, lw=1.6)
    say(axes, 7, 5.8, "between segments, on the host", 11, GREEN, weight="bold")
    say(axes, 93, 5.8, "host hooks are called, buffered rows are written", 9, GREEN, ha="right")
    for a, b in (((30, low - 3.9), (30, 9.9)), ((70, 9.9), (70, low - 3.9))):
        axes.add_patch(FancyArrowPatch(a, b, arrowstyle="-|>", mutation_scale=14, color=FAINT, lw=1.4))
    say(axes, 32, (low + 6.1) / 2, "after many steps", 8.5, FAINT)
    say(axes, 68, (low + 6.1) / 2, "the next ones", 8.5, FAINT, ha="right")
    save(figure, "step.png")


# -- Padding ---------------------------------------------------------------


def cells(axes, x, y, colors, words=(), size=3.6):
    """A row of squares."""
    for i, color in enumerate(colors):
        axes.add_patch(Rectangle((x + i * size, y), size, size, fc=color, ec=PAPER, lw=1.2))
        if len(words) > i:
            ink = INK if color == GREY else "white"
            say(axes, x + (i + 0.5) * size, y + 0.47 * size, words[i], 7.5, ink, ha="center")


def padding():
    """Three systems of 3, 5 and 4 atoms in a batch of 16 atoms and 4 systems."""
    figure, axes = blank(8.2, 5.1)
    counts, colors = (3, 5, 4), (BLUE, ORANGE, GREEN)
    owner = [i for i, n in enumerate(counts) for _ in range(n)] + [4] * 4
    row = [colors[i] if i < 3 else GREY for i in owner]
    systems = [*colors, GREY]
    left, size = 30, 4.1
    figures = ("3 atoms", "5 atoms", "4 atoms")
    for i, (n, color, said) in enumerate(zip(counts, colors, figures, strict=True)):
        x = left + (1.5, 5.5, 10)[i] * size
        angles = np.linspace(0, 2 * np.pi, n, endpoint=False) + 0.4
        for j, a in enumerate(angles):
            ball(axes, x + 2.5 * np.cos(a), 55.3 + 2.5 * np.sin(a), 1.35, color, 3 + j)
        axes.text(x, 50.2, said, fontsize=8.5, ha="center", color=INK)
    axes.text(3, 55, "systems", fontsize=10, color=INK, va="center")

    def line(y, name, shape, colors, words):
        axes.text(3, y + 2.6, name, family="monospace", fontsize=9.5, color=INK, va="center")
        axes.text(3, y + 0.1, shape, fontsize=8, color=FAINT, va="center")
        cells(axes, left, y, colors, words, size)

    line(43.0, "positions", "[atoms, 3]", row, ())
    line(37.0, "batch_idx", "[atoms]", row, [str(i) for i in owner])
    line(31.0, "atom_mask", "[atoms]", row, [str(int(i < 3)) for i in owner])
    line(23.6, "energy", "[systems]", systems, ["E0", "E1", "E2"])
    line(17.6, "system_mask", "[systems]", systems, ["1", "1", "1", "0"])
    axes.text(left + 14 * size, 48.6, "padding", fontsize=8.5, color=FAINT, ha="center")
    grey = "Grey rows are padding: energies, sums and\nmeans leave them out. They make shapes\n"
    grey += "fixed, so that one compiled program serves\nany systems that fit."
    say(axes, left + 4.4 * size, 22.6, grey, 9, linespacing=1.35)
    near = [2, 2, 2, 4, 4, 3, 4, 4, 3, 3, 3, 3, 0, 0, 0, 0]
    for k in range(4):
        filled = [c if k < n else GREY for c, n in zip(row, near, strict=True)]
        for i, color in enumerate(filled):
            corner, alpha = (left + i * size, 11.2 - 2.7 * k), 1.0 if color == GREY else 0.75
            axes.add_patch(Rectangle(corner, size, 2.7, fc=color, ec=PAPER, lw=1.0, alpha=alpha))
    axes.text(3, 11.6, "neighbors", family="monospace", fontsize=9.5, color=INK, va="center")
    axes.text(3, 9.1, "[neighbors, atoms]", fontsize=8, color=FAINT, va="center")
    grown = "a list that overflows\nis enlarged, and the\nsteps are repeated"
    say(axes, 3, 5.0, grown, 8, FAINT, linespacing=1.25)
    save(figure, "padding.png")


# -- Speed -----------------------------------------------------------------

#: Title, file of results, workload, peers in the order of the bars.
SPEEDS = [
    (
        "256 clusters of 13 atoms, FIRE",
        "2026-11-26.json",
        "W1",
        {
            "torch-sim": "TorchSim",
            "kups": "kUPS",
            "jax-md": "jax-md",
            "nvalchemi-toolkit": "nvalchemi-toolkit",
        },
    ),
    (
        "32 crystals of 256 atoms, NVE",
        "2026-11-26.json",
        "W2",
        {"jax-md": "jax-md", "lammps": "LAMMPS, plain (double)", "lammps-opt": "LAMMPS, opt (double)"},
    ),
    (
        "one crystal of 4000 atoms, NVE",
        "2026-11-26.json",
        "W3",
        {"lammps": "LAMMPS, plain (double)", "lammps-opt": "LAMMPS, opt (double)"},
    ),
    (
        "CHGNet: 32 cells of 24 atoms, FIRE",
        "2026-11-27-chgnet.json",
        "W7",
        {"chgnet on torch": "chgnet on torch"},
    ),
]


def ratios(file, workload, peer):
    """Our speed over the peer's, by dtype."""
    rows = json.loads((RESULTS / file).read_text())["results"]
    return {r["dtype"]: r["ratio"] for r in rows if (r["workload"], r["peer"]) == (workload, peer)}


def speed():
    """Bars of the ratios of speed, with a logarithmic axis."""
    figure, axes = plt.subplots(figsize=(8.2, 5.4), facecolor=PAPER)
    figure.subplots_adjust(left=0.24, right=0.95, top=0.98, bottom=0.11)
    axes.set_facecolor(PAPER)
    y, ticks, names = 0.0, [], []
    for title, file, workload, peers in SPEEDS:
        say(axes, 1.04, y + 0.05, title, 9.5, weight="bold")
        y -= 0.85
        for peer, name in peers.items():
            found = ratios(file, workload, peer)
            for k, (dtype, color) in enumerate((("float32", BLUE), ("float64", ORANGE))):
                if dtype in found:
                    at = y - 0.36 * k
                    axes.barh(at, found[dtype] - 1, 0.34, left=1, color=color)
                    shown = f"{found[dtype]:.2f}" if found[dtype] < 2 else f"{found[dtype]:.3g}"
                    say(axes, max(found[dtype], 1.0) * 1.06, at, shown, 8)
            ticks.append(y - 0.18 * (len(found) - 1))
            names.append(name)
            y -= 0.95
        y -= 0.12
    axes.axvline(1.0, color=INK, lw=1, ls=":")
    say(axes, 0.97, -1.5, "equal", 8, rotation=90, ha="right")
    axes.set_xscale("log")
    axes.set_xlim(0.5, 900)
    axes.set_ylim(y + 0.3, 0.5)
    axes.set_xticks([1, 10, 100], ["1", "10", "100"])
    axes.set_yticks(ticks, names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("times as fast as the other code, on one core", fontsize=9.5, color=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    bars = [Rectangle((0, 0), 1, 1, color=c) for c in (BLUE, ORANGE)]
    axes.legend(bars, ["float32", "float64"], loc="lower right", frameon=False, fontsize=9)
    save(figure, "speed.png")


PICTURES = {"atoms": atoms, "step": step, "padding": padding, "speed": speed}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}; all if none is given"
    )
    for name in parser.parse_args().names or PICTURES:
        PICTURES[name]()
