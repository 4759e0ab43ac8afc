"""Iterate in background threads: read items ahead, or consume items while they are made."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Result = TypeVar("Result")


class Stopped(Exception):
    """Ends the making of items that are no longer needed, or the consumption of items that no longer arrive."""


def consume(work: Callable[[Iterator], Result], items: Iterable, depth: int, stop: threading.Event) -> Result:
    """Return `work(items)`, called in another thread while this thread makes the items, up to `depth` ahead.

    `stop` is set when no more items are needed; code that makes items slowly may check it and raise `Stopped`. Errors
    of both threads are raised here.
    """
    ready, results, failures = queue.Queue(depth), [], []

    def run() -> None:
        try:
            results.append(work(_received(ready)))
        except BaseException as error:  # raised again in the thread that makes the items
            failures.append(error)
        finally:
            stop.set()

    thread, last = threading.Thread(target=run, daemon=True), Stopped()
    thread.start()
    try:
        with contextlib.suppress(Stopped):
            if all(_put(ready, (item, None), stop) for item in items):
                last = StopIteration()
    finally:
        _put(ready, (None, last), stop)
        thread.join()
    if failures:
        raise failures.pop()
    return results[0]


def _received(ready: queue.Queue) -> Iterator:
    """Iterate over the items that another thread puts into a queue; raises the error that it ends with."""
    while True:
        item, end = ready.get()
        if isinstance(end, StopIteration):
            return
        if end is not None:
            try:
                raise end
            finally:
                end = None  # avoid a reference cycle between the error and this frame
        yield item


def prefetch(items: Iterable, depth: int) -> Iterator:
    """Iterate over `items`, which another thread reads up to `depth` items ahead; its errors are raised here."""
    ready, stop = queue.Queue(depth), threading.Event()

    def make() -> None:
        try:
            for item in items:
                if not _put(ready, (item, None), stop):
                    return
            _put(ready, (None, StopIteration()), stop)
        except BaseException as error:  # raised again in the consumer
            _put(ready, (None, error), stop)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        yield from _received(ready)
    finally:
        stop.set()
        thread.join()


def _put(ready: queue.Queue, item: tuple, stop: threading.Event) -> bool:
    """Put an item into the queue; False if no more items are needed."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
