"""Entries of the registry of models: what is known of each without importing it; those of this package."""

import dataclasses
from typing import Literal

from alchemi_jax.models.symbols import numbers_of


#: What may stand behind the name and a colon: nothing; `parameter=number,...`; a version; the name of a file
#: or a folder, which may hold any letters; `module:name`; a text that the model itself reads.
Grammar = Literal["nothing", "numbers", "version", "file", "folder", "place", "text"]


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """A model that has a name.

    Packages add their own by an entry point of the group `alchemi_jax.models`, which names such an entry, or
    a function or class that returns a model.

    Attributes:
        name: without a colon.
        text: what it is, in a line.
        place: `module:callable`, imported when the model is made; called with what follows the colon:
            `callable(**numbers)`, `callable(version=...)`, `callable(path)`, `callable(text)`.
        grammar: form of what follows the colon.
        bare: `module:callable`, called without arguments for the name without a colon; "" if that is no
            model. An entry with `versions` takes the first one then.
        required, optional: names of the numbers.
        versions: the default first.
        elements: atomic numbers that it knows, with the name alone or any version; None if this depends on
            what follows the colon.
        covers: the elements in words, where `elements` is None.
        licence: of the parameters or weights. `source`: publication or package.
        modules: names of Python modules that it needs. `install`: the command that installs them.
        fetch: `module:function` that gets the weights of a version, on first use or by
            `alchemi-jax models get NAME`; "" if it has none. `fetched`: `module:function` that says whether
            they are there.
    """

    name: str
    text: str
    place: str
    grammar: Grammar = "nothing"
    bare: str = ""
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    elements: frozenset[int] | None = None
    covers: str = "as its file says"
    licence: str = ""
    source: str = ""
    modules: tuple[str, ...] = ()
    install: str = ""
    fetch: str = ""
    fetched: str = ""

    @property
    def form(self) -> str:
        """How it is written: `lj`, `lj:epsilon=...,sigma=...[,cutoff=...]`, `eam:FILE`."""
        if self.grammar == "nothing" or ":" in self.name:
            return self.name
        if self.grammar == "numbers":
            rest = ",".join(f"{name}=..." for name in self.required)
            rest += "".join(f"[,{name}=...]" for name in self.optional)
        else:
            words = {"version": "VERSION", "place": "MODULE:NAME", "text": "..."}
            rest = words.get(self.grammar, self.grammar.upper())
        return f"{self.name}[:{rest}]" if self.stands_alone else f"{self.name}:{rest}"

    @property
    def stands_alone(self) -> bool:
        """Whether the name without a colon is a model."""
        return bool(self.bare or self.versions or self.grammar in ("nothing", "text"))


#: The elements of the structures that CHGNet was fitted to.
CHGNET_ELEMENTS = numbers_of("H-Bi Ac-Pu")
NOBLE_GASES = numbers_of("He Ne Ar Kr Xe Rn Og")
_NEQUIX = "pip install e3nn-jax jraph && pip install --no-deps nequix"
_OURS = "Apache-2.0"

_ENTRIES = (
    ModelEntry(
        "chgnet",
        "CHGNet, a universal potential of inorganic crystals, with magnetic moments",
        "alchemi_jax.models.chgnet:CHGNet.load",
        "version",
        versions=("0.3.0", "0.2.0", "r2scan"),
        elements=CHGNET_ELEMENTS,
        licence="BSD-3-Clause, modified",
        source="B. Deng et al., Nat. Mach. Intell. 5, 1031 (2023); weights of the package chgnet 0.4.2",
        install="alchemi-jax models get chgnet",
        fetch="alchemi_jax.models.chgnet_weights:keep",
        fetched="alchemi_jax.models.chgnet_weights:found",
    ),
    ModelEntry(
        "emt",
        "effective medium theory, of metals; H, C, N, O for tests only",
        "alchemi_jax.models.emt:EMT",
        elements=numbers_of("H C N O Al Ni Cu Pd Ag Pt Au"),
        licence=_OURS,
        source="K. W. Jacobsen, P. Stoltze, J. K. Nørskov, Surf. Sci. 366, 394 (1996)",
    ),
    ModelEntry(
        "lj",
        "Lennard-Jones; without parameters of noble gases, with epsilon (eV) and sigma (Å) of any atoms",
        "alchemi_jax.models.pair:LennardJones",
        "numbers",
        "alchemi_jax.models.pair:LennardJones.noble_gases",
        ("epsilon", "sigma"),
        ("cutoff",),
        elements=numbers_of("Ne Ar Kr Xe"),
        licence=_OURS,
        source="N. W. Ashcroft, N. D. Mermin, Solid State Physics (1976), table 20.2",
    ),
    ModelEntry(
        "morse",
        "Morse's pair potential; depth (eV), width (1/Å), r0 (Å)",
        "alchemi_jax.models.pair:Morse",
        "numbers",
        "",
        ("depth", "width", "r0"),
        ("cutoff",),
        covers="any",
        licence=_OURS,
        source="P. M. Morse, Phys. Rev. 34, 57 (1929)",
    ),
    ModelEntry(
        "sw",
        "Stillinger-Weber; without a file of silicon, or a file of LAMMPS (.sw)",
        "alchemi_jax.models.stillinger_weber:StillingerWeber.read",
        "file",
        "alchemi_jax.models.stillinger_weber:StillingerWeber",
        elements=numbers_of("Si"),
        licence=_OURS,
        source="F. H. Stillinger, T. A. Weber, Phys. Rev. B 31, 5262 (1985)",
    ),
    ModelEntry(
        "tersoff",
        "Tersoff's bond-order potential from a file of LAMMPS (.tersoff)",
        "alchemi_jax.models.tersoff:Tersoff.read",
        "file",
        licence="of the file",
        source="J. Tersoff, Phys. Rev. B 39, 5566 (1989)",
    ),
    ModelEntry(
        "eam",
        "embedded atom method from a file of LAMMPS or DYNAMO (.eam, .eam.alloy, .eam.fs)",
        "alchemi_jax.models.eam:EAM.read",
        "file",
        licence="of the file",
        source="M. S. Daw, M. I. Baskes, Phys. Rev. B 29, 6443 (1984)",
    ),
    ModelEntry(
        "nequix",
        "Nequix, an equivariant network, from a file of the package nequix (.nqx)",
        "alchemi_jax.models.nequix:NequixModel.read",
        "file",
        licence="of the file; MIT of nequix-mp-1",
        source="T. Koker et al., arXiv:2508.16067 (2025); the package nequix",
        modules=("nequix", "e3nn_jax", "jraph"),
        install=_NEQUIX,
    ),
    ModelEntry(
        "mlip",
        "MACE, NequIP or ViSNet, from a file of InstaDeep's package mlip (.zip)",
        "alchemi_jax.models.mlip:MLIPModel.read",
        "file",
        licence="of the file",
        source="the package mlip, github.com/instadeepai/mlip",
        modules=("mlip",),
        install="pip install mlip",
    ),
    ModelEntry(
        "exported",
        "a function that jax.export has saved, with a small file of metadata (.zip)",
        "alchemi_jax.models.exported:ExportedModel.read",
        "file",
        licence="of the file",
        source="jax.export, docs.jax.dev",
        modules=("flatbuffers",),
        install="pip install flatbuffers",
    ),
    ModelEntry(
        "ase",
        "a calculator of ASE, called on the host",
        "alchemi_jax.models.ase:ASEModel",
        "place",
        covers="as the calculator says",
        licence="of the calculator",
        source="A. Hjorth Larsen et al., J. Phys.: Condens. Matter 29, 273002 (2017)",
    ),
    ModelEntry(
        "trained",
        "a model that this package has trained, from its folder",
        "alchemi_jax.models.trained:load",
        "folder",
        covers="as its folder says",
        licence="of the data",
        source="this package",
    ),
)
#: name -> entry, of this package.
ENTRIES = {entry.name: entry for entry in _ENTRIES}


__all__ = ["CHGNET_ELEMENTS", "ENTRIES", "NOBLE_GASES", "Grammar", "ModelEntry"]
