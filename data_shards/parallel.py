"""Jobs over processes, in order and with bounded memory."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import cv2

from data_shards.convert import Converted, Job
from data_shards.errors import PackError

AHEAD = 3
"""Jobs in flight per worker: one at work, two waiting, so that none idles and few radiographs are held at once."""


def spread(work: Callable[[Job], Converted], jobs: Iterable[Job], workers: int) -> Iterator[Converted]:
    """`work` of each job, in their order; in this process for one worker. Raises PackError where a worker dies."""
    if workers == 1:
        yield from map(work, jobs)
        return
    # spawn: forking a process that runs threads (a progress bar, torch) may hang it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        flying: deque[Future[Converted]] = deque()
        try:
            for job in jobs:
                flying.append(pool.submit(work, job))
                if len(flying) >= AHEAD * workers:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        except BrokenProcessPool:
            raise PackError("a worker process died, most likely for want of memory: use fewer --workers") from None
        finally:
            for future in flying:
                future.cancel()
