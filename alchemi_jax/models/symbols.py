"""Chemical symbols and sets of elements, without ASE and JAX, so that the command line knows them at once."""

import re
from collections.abc import Iterable


#: By atomic number, as in ASE; "X" is number 0.
SYMBOLS = tuple(
    re.findall(
        r"\w+",
        """
        X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
        Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb
        Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf
        Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
        """,
    )
)


def numbers_of(text: str) -> frozenset[int]:
    """Atomic numbers of symbols and of ranges of them, "H C-O Si".

    Raises:
        ValueError: for a word that is no symbol.
    """
    found: set[int] = set()
    for word in text.split():
        first, _, last = word.partition("-")
        for symbol in (first, last or first):
            if symbol not in SYMBOLS:
                raise ValueError(f"{symbol!r} is no chemical symbol.")
        found |= set(range(SYMBOLS.index(first), SYMBOLS.index(last or first) + 1))
    return frozenset(found)


def symbols_of(numbers: Iterable[int]) -> str:
    """Symbols of atomic numbers in their order, with commas; five or more in a row as "H to Bi"."""
    rest, parts = sorted(set(numbers)), []
    while rest:
        n = 1
        while n < len(rest) and rest[n] == rest[0] + n:
            n += 1
        run, rest = rest[:n], rest[n:]
        names = [SYMBOLS[z] for z in run]
        parts += [f"{names[0]} to {names[-1]}"] if n > 4 else names
    return ", ".join(parts)


__all__ = ["SYMBOLS", "numbers_of", "symbols_of"]
