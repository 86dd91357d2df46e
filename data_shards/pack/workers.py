"""Jobs over processes of this machine or of a Dask cluster, in order and with bounded memory."""

import logging
import multiprocessing
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import cv2

from data_shards.errors import PackError

AHEAD = 3
"""Jobs in flight per worker: one at work, two waiting, so that none idles and few radiographs are held at once."""
_DASK_SECONDS = 15
"""How long a scheduler may take to answer."""
_LOOK_SECONDS = 5
"""How often a long wait is broken to see whether the cluster is still there."""
_ADDRESS = re.compile(r"(?:tcp|tls)://(.+):(\d+)")

Work = TypeVar("Work")
Done = TypeVar("Done")


def spread(work: Callable[[Work], Done], jobs: Iterable[Work], workers: int, dask: str | None = None) -> Iterator[Done]:
    """`work` of each job, in their order: in this process for one worker, else on `workers` processes or a cluster.

    `dask` is the address of a Dask scheduler, whose workers then count. Jobs travel whole: sources are read here only.
    Raises PackError where workers die for good; what a Dask worker had in hand when it died is done by another.
    """
    if dask is None and workers == 1:
        yield from map(work, jobs)
        return
    with _cluster(dask) if dask else _processes(workers) as (executor, count, look):
        flying: deque[Future[Done]] = deque()
        try:
            for job in jobs:
                flying.append(executor.submit(work, job))
                if len(flying) >= AHEAD * count:
                    yield _result(flying.popleft(), look)
            while flying:
                yield _result(flying.popleft(), look)
        finally:
            for future in flying:
                future.cancel()


def _result(future: Future[Done], look: Callable[[], None]) -> Done:
    """What the work gave; while it takes long, `look` is called, which raises where nothing more is to come."""
    while not wait([future], timeout=_LOOK_SECONDS).done:
        look()
    return future.result()


def begin_worker(parent: int) -> None:
    """What a worker process does first: one thread for OpenCV, and one that ends it when its `parent` is killed."""
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)  # a kill leaves workers waiting for work for ever


@contextmanager
def _processes(workers: int) -> Iterator[tuple[Executor, int, Callable[[], None]]]:
    # spawn: forking a process that runs threads (a progress bar, torch) may hang it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=begin_worker, initargs=(os.getpid(),)) as pool:
        try:
            yield pool, workers, lambda: None  # a broken pool ends its futures
        except BrokenProcessPool:
            raise PackError(
                "a worker process died, most likely for want of memory: use fewer --workers; the same command goes on"
            ) from None


@contextmanager
def _cluster(address: str) -> Iterator[tuple[Executor, int, Callable[[], None]]]:
    try:
        from distributed import Client, KilledWorker
        from distributed.comm import CommClosedError
    except ImportError:
        raise PackError(
            '--dask needs Dask: pip install "tooth-foundations[dask]" (in a checkout: pip install -e ".[dask]")'
        ) from None
    _knock(address)
    logging.disable(logging.CRITICAL)  # Dask and tornado log every lost connection, with tracebacks; ours are told
    try:
        with Client(address, timeout=_DASK_SECONDS, set_as_default=False) as client:
            threads = sum(client.nthreads().values())
            if not threads:
                raise PackError(f"the Dask scheduler at {address} has no workers: start some")
            client.run(partial(cv2.setNumThreads, 1))

            def look() -> None:
                if client.status != "running":  # futures submitted while the connection breaks never end
                    raise CancelledError

            try:
                yield client.get_executor(pure=False), threads, look
            except KilledWorker:
                raise PackError(
                    "Dask's workers died one after another on one radiograph, most likely for want of memory: give "
                    "them more; the same command goes on"
                ) from None
            except (CancelledError, CommClosedError):
                raise PackError(
                    f"the Dask scheduler at {address} was lost: start it again, and the same command goes on"
                ) from None
    finally:
        logging.disable(logging.NOTSET)


def _knock(address: str) -> None:
    """Raise PackError where nobody listens: a Client that fails to connect prints tracebacks as it is collected."""
    place = _ADDRESS.fullmatch(address)
    if place is None:
        raise PackError(f"--dask {address}: a Dask scheduler's address is tcp://HOST:PORT")
    try:
        socket.create_connection((place[1].strip("[]"), int(place[2])), timeout=_DASK_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PackError(f"no Dask scheduler answers at {address} ({reason}): check the address") from None
