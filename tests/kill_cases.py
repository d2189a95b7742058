"""Sweeps of kills over the file layer, each in a process without a backend of JAX: kill_cases.py NAME FOLDER.

`test_kills.py` runs them. Each raises AssertionError with the change at which it went wrong.
"""

import sys
from pathlib import Path

from killing import copy_of, every_kill


def sweep_replace(folder: Path, there: bool = True) -> int:
    """A folder that takes the place of another, and the repair: one of the two is found."""
    from alchemi_jax.io.replace import repair, replacing

    path, others = folder / "a", {".new-a", ".old-a", ".a.replace", "a.new", ".a.abcdefgh"}

    def fill(path: Path, text: str) -> None:
        (path / "deep").mkdir(parents=True)
        for name in "xy":
            (path / "deep" / name).write_text(text)

    def put() -> None:
        with replacing(path) as new:
            fill(new, "new")

    def contents() -> str | None:
        names = {p.name for p in folder.iterdir()}
        assert sum(1 for p in folder.rglob("mine")) == len(others), "a file of others is gone"
        assert names - others <= {"a"}, names
        if not path.exists():
            return None
        (text,) = {(path / "deep" / name).read_text() for name in "xy"}
        return text

    for name in others:
        (folder / name).mkdir()
        (folder / name / "mine").touch()
    if there:
        fill(path, "old")
    before, total = contents(), 0
    seen: list[str | None] = []
    for at in every_kill(folder, put, copy_of(folder, "begin")):
        again = copy_of(folder, "killed")
        results = set()
        for second in every_kill(folder, lambda: repair(path), again):
            repair(folder if second % 2 else path)
            results.add(contents())
            total += 1
        repair(path)
        assert results <= {contents()}, f"kill {at}: a repair that was killed gave {results}"
        seen.append(contents())
        again()
        put()
        assert contents() == "new", f"kill {at}"
    assert seen == sorted(seen, key=lambda text: text == "new"), seen
    assert set(seen) == {before, "new"}, seen
    return total


CASES = {
    "replace": sweep_replace,
    "replace-nothing": lambda folder: sweep_replace(folder, there=False),
}


if __name__ == "__main__":
    print(f"{CASES[sys.argv[1]](Path(sys.argv[2]))} kills")
