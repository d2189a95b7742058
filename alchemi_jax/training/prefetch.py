"""A thread that makes the next items while the present one is used."""

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar


_T = TypeVar("_T")
_END = object()


def prefetch(items: Iterable[_T], depth: int = 2) -> Iterator[_T]:
    """The items in their order, made by a thread that is up to `depth` of them ahead.

    An error in the thread is raised here, after the items before it. Closing the iterator, or leaving the
    loop over it, ends the thread.

    Args:
        depth: 0 makes each item when it is asked for, without a thread.
    """
    if depth == 0:
        yield from items
        return
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as e:
            put((_END, e))

    thread = threading.Thread(target=work, name="alchemi_jax-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        thread.join()


__all__ = ["prefetch"]
