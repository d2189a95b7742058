"""New results in `unfinished` take the place of the old ones in the folder around it.

A small file, put there by a rename, lists their names. From then on the new results are the valid ones: what
a process that is killed leaves undone, the next one does, from any point.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from alchemi_jax.cli.outcome import UsageError, os_reason
from alchemi_jax.cli.write import whole_file
from alchemi_jax.io.lock import LockedError, WriteLock
from alchemi_jax.io.replace import repair


#: The folder of results while there are older ones.
UNFINISHED = "unfinished"
#: In it: names of the results that take the place of the old ones, and of old ones that have no successor.
SWAP = "swap.json"
#: What a folder is called in there while it is removed.
_ASIDE = ".old-"
#: Seconds that a reader waits for another process that is putting results in their place.
_PATIENCE = 10.0


def swap(out: Path, new: Sequence[str], old: Sequence[str]) -> None:
    """Put the new results in the place of the old ones. The folder is locked by the caller.

    Args:
        out: the folder of results. new: names in `unfinished`.
        old: names in the folder that are removed or replaced.
    """
    with whole_file(out / UNFINISHED / SWAP) as part:
        part.write_text(json.dumps({"new": list(new), "old": [name for name in old if name not in new]}))
    finish_swap(out)


def finish_swap(out: Path) -> bool:
    """Do what a swap that was begun has left undone; whether there was one. The folder is locked by the
    caller.

    Raises:
        OSError: if it cannot be done; the next call goes on.
        UsageError: if the list of names is damaged.
    """
    at = out / UNFINISHED
    try:
        names = json.loads((at / SWAP).read_text())
        new, old = ([str(name) for name in names[kind] if Path(name).name == name] for kind in ("new", "old"))
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{at / SWAP} is damaged: compare {out} and {at}, and remove this file.") from None
    for name in new:
        aside = at / f"{_ASIDE}{name}"
        # Of a folder that is there and in part removed there is nothing to keep.
        _remove(aside)
        if os.path.lexists(at / name):
            if (out / name).is_dir() or ((at / name).is_dir() and os.path.lexists(out / name)):
                os.rename(out / name, aside)
            os.replace(at / name, out / name)
        _remove(aside)
    for name in old:
        aside = at / f"{_ASIDE}{name}"
        _remove(aside)
        if os.path.lexists(out / name):
            os.rename(out / name, aside)
        _remove(aside)
    os.unlink(at / SWAP)
    with contextlib.suppress(OSError):
        at.rmdir()
    return True


def repaired(out: Path) -> None:
    """Before results are read: finish a swap that a process was killed in.

    Raises:
        UsageError: if that cannot be done.
    """
    until = time.monotonic() + _PATIENCE
    while (out / UNFINISHED / SWAP).exists():
        try:
            lock = WriteLock(out)
        except LockedError:
            if time.monotonic() > until:
                raise UsageError(
                    f"{out}: another process puts new results in the place of the old ones."
                ) from None
            time.sleep(0.05)
            continue
        try:
            finish_swap(out)
        except OSError as e:
            raise UsageError(
                f"{out} is half replaced by new results, whose other half is in {out / UNFINISHED}, and this "
                f"cannot be ended: {os_reason(e)}; any command that may write there does."
            ) from None
        finally:
            lock.release()
    with contextlib.suppress(OSError):
        # Where nothing can be written, what can be read is read.
        repair(out)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
