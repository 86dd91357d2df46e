import os
import signal

# A shell ignores SIGINT for what it starts in the background, and every child of the tests would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Two processes of tests share the machine: with more threads than cores torch stalls. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# A slow moment on a shared machine is not a failure. CI repeats the same cases, so that a red run means a change;
# everywhere else each run looks at new ones.
settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("here")


# Each process takes whole files: were these begun last, one process would work on for minutes beside an idle one.
LONGEST = ("test_stopping", "test_run", "test_hosts", "test_faults", "test_quality", "test_verdict", "test_ablation")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    from crops_fixture import packed  # here: most tests need none of what it imports

    return packed(tmp_path_factory.mktemp("crops"), tmp_path_factory.mktemp("packed") / "shards")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    from crops_fixture import written

    return written(tmp_path_factory.mktemp("weights") / "tiny.pth")
