"""The folder in which a pack works until it is finished: it survives a kill, and one pack at a time has it."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_shards.errors import NothingNewError, PackError
from data_shards.pack.resume_log import SPOOL
from data_shards.shards.manifest import MANIFEST, WORKING

_LOCK, _MADE = "lock", "made"


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """`.<name>.packing` beside `out`, locked while in use. It stays if the pack fails after it has converted anything.

    Raises PackError where it cannot be written, also within, and where another pack has it.
    """
    folder = working_folder(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("w")
    except OSError as error:
        raise PackError(f"cannot write beside {out} ({error.strerror}): name another --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PackError(f"another pack is writing {out}: wait for it, or name another --out") from None
        try:
            yield folder
        except OSError as error:
            raise PackError(
                f"cannot write {error.filename or folder} ({error.strerror}): free some space, then the same command "
                "goes on"
            ) from None
        except NothingNewError:  # the same command would come to the same end
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            if not _worth_keeping(folder, out):
                shutil.rmtree(folder, ignore_errors=True)


def fresh(folder: Path) -> Path:
    """An empty folder in the working folder, for the shard folder."""
    made = folder / _MADE
    if made.exists():  # of a pack that was killed while it wrote it
        shutil.rmtree(made)
    made.mkdir()
    return made


def finish(made: Path, out: Path) -> None:
    """Bring everything to the disk, then give the folder its name: what has the name is whole."""
    for path in [*made.rglob("*"), made]:
        _sync(path)
    made.replace(out)
    _sync(out.absolute().parent)


def was_finishing(out: Path) -> bool:
    """Whether a pack was killed between giving `out` its name and clearing up, which is done then."""
    folder = working_folder(out)
    if not (folder / SPOOL).exists() or (folder / _MADE).exists():
        return False
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        shutil.rmtree(folder, ignore_errors=True)
    return True


def working_folder(out: Path) -> Path:
    """Where a pack into `out` works until it is finished."""
    return out.absolute().parent / f".{out.absolute().name}{WORKING}"


def _worth_keeping(folder: Path, out: Path) -> bool:
    """Whether crops were made and are not yet in the finished folder."""
    spool = folder / SPOOL
    finished = (out / MANIFEST).exists() and not (folder / _MADE).exists()
    return spool.exists() and spool.stat().st_size > 0 and not finished


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
