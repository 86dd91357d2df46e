"""A pack on a Dask cluster: a real scheduler and real workers, each a process of its own, on this machine."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from test_resume_pack import clinic, command, lines_of, tree, whole  # noqa: F401 - clinic is a fixture

from data_shards.errors import PackError
from data_shards.pack.workers import spread


@pytest.fixture
def cluster():
    """Address, worker processes and scheduler process of a cluster."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"], **quiet
    )
    options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
    workers = [subprocess.Popen([*dask, "worker", address, *options], **quiet) for _ in range(2)]
    try:
        until = time.monotonic() + 60
        while True:  # on a busy machine it takes longer to import than the client waits
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert time.monotonic() < until, "the scheduler does not start"
            time.sleep(0.1)
        yield address, workers, scheduler
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_worker_killed_midway_loses_and_repeats_nothing(clinic, cluster):  # noqa: F811
    address, workers, _ = cluster
    with begun(clinic, address) as process:
        workers[0].send_signal(signal.SIGKILL)
        _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert "Traceback" not in told
    assert tree(clinic / "out") == whole(clinic)


@contextmanager
def begun(folder, address):
    """A pack on the cluster that has converted some files; it does not outlive the test."""
    process = subprocess.Popen(command(folder, "--dask", address), stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while len(lines_of(folder)) < 4 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "it ended before anything could be killed"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_lost_scheduler_is_one_line_and_the_pack_goes_on_without(clinic, cluster):  # noqa: F811
    address, _, scheduler = cluster
    with begun(clinic, address) as process:
        scheduler.kill()
        _, told = process.communicate(timeout=400)
    assert process.returncode == 2, told
    assert re.search(r"^error: the Dask scheduler at .* was lost", told, re.MULTILINE), told
    assert "Traceback" not in told
    subprocess.run(command(clinic), capture_output=True, check=True)
    assert tree(clinic / "out") == whole(clinic)


@pytest.mark.slow
def test_without_workers_or_scheduler_it_is_one_line(clinic, cluster):  # noqa: F811
    address, workers, _ = cluster
    for worker in workers:
        worker.kill()
        worker.wait()
    nobody = address.rpartition(":")[0] + ":1"
    for place, words in (
        (address, "has no workers"),
        (nobody, "no Dask scheduler answers"),
        ("nonsense://x", "tcp://HOST:PORT"),
    ):
        done = subprocess.run(command(clinic, "--dask", place), capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert re.search(rf"^error: .*{words}", done.stderr, re.MULTILINE), done.stderr
        assert "Traceback" not in done.stderr


def test_without_the_extra_it_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(PackError, match=r'pip install -e "\.\[dask\]"'):
        list(spread(str, [1], 2, "tcp://127.0.0.1:1"))
