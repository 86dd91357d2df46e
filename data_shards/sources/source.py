"""What can be packed: folders, archives, archives in them, and single files, as streams of members.

Members are read from where they lie, one after another, and nothing is written under a member's name, so a name that
climbs out of its archive, is absolute or stands there twice does no harm. Links are not followed.
"""

import glob
import io
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from data_shards.errors import MemberError, PackError
from data_shards.shards.manifest import WORKING, is_pack
from data_shards.sources.limits import SPOOL_GB, Expansion
from data_shards.sources.member import Member
from data_shards.sources.nested import REST_LOST, archive_kind, files_in, inside, unfolded
from data_shards.sources.spool import Spool
from data_shards.sources.zip_tar import refusal


@dataclass(frozen=True)
class Source:
    """Something to pack. `label` stands for it in the names that ids are made of, wherever it lies on the disk.

    `spool_bytes` is the size of the temporary file for archives inside its archives; `leaves` are folders and
    files below it that are not looked into; `linked` says that a pattern met it at or behind a link.
    """

    path: Path
    label: str
    spool_bytes: int = int(SPOOL_GB * 1e9)
    leaves: frozenset[Path] = frozenset()
    linked: bool = False

    def members(self) -> Iterator[Member]:
        """Its files, each under a name of its own (`x#2` where an archive holds `x` twice), always in the same order.

        Raises MemberError where it ends early, PackError where the temporary disk is full.
        """
        names: dict[str, int] = {}  # and how often each was met, so that thousands of one name take no longer
        spool = Spool(self.spool_bytes)
        try:
            for member in self._files(spool):
                name = member.name
                while member.name in names:
                    names[name] += 1
                    member.name = f"{name}#{names[name]}"
                names[member.name] = 1
                yield member
                member.close()
        finally:
            spool.close()

    def name_of(self, member_name: str) -> str:
        """The name under which a member is known: `label/member`."""
        return f"{self.label}/{member_name}"

    def check(self) -> None:
        """Raise PackError where it is an archive that cannot be opened."""
        if self.path.is_dir():
            return
        member = self._file()
        try:
            if archive_kind(member.head()):
                next(files_in(member, Spool(0), Expansion(member.size)), None)
        except MemberError as error:
            raise PackError(f"{self.path}: {error}") from None
        finally:
            member.close()

    def _files(self, spool: Spool) -> Iterator[Member]:
        if self.linked:
            yield Member(self.path.name, 0, io.BytesIO, refusal(True, False))
            return
        if self.path.is_dir():
            for member in _in_folder(self.path, self.leaves):
                yield from unfolded(member, spool)
                member.close()
            return
        member = self._file()
        count = 0
        try:
            for inner in inside(member, spool) if archive_kind(member.head()) else unfolded(member, spool):
                count += 1
                yield inner
        except MemberError as error:
            raise MemberError(f"{error}; {REST_LOST}" if count else str(error)) from None
        finally:
            member.close()

    def _file(self) -> Member:
        """The path as a file; where it is a link, the file that it stands for, as the user named it."""
        path = self.path.resolve()
        return _member(path, path.name)


class _Place(NamedTuple):
    path: Path
    label: str
    named: bool = True
    linked: bool = False


def open_sources(paths: Sequence[str | Path], spool_gb: float = SPOOL_GB, leaves: Iterable[Path] = ()) -> list[Source]:
    """The sources at `paths`, which may be patterns such as `clinic/**/*.zip`; archives are recognised by content.

    `spool_gb` is the size in 10^9 bytes of the temporary file for inner archives, `leaves` are folders and files that
    are not read even where they lie in a source. Raises PackError for a path or pattern at which nothing lies, and for
    a path that cannot be read; among many that match a pattern, one such is left to the ledgers.
    """
    sources: list[Source] = []
    labels: set[str] = set()
    left = frozenset(folder.resolve() for folder in leaves)
    for place in (place for path in paths for place in _places(path)):
        label, count = place.label, 1
        while label in labels:
            count += 1
            label = f"{place.label}#{count}"
        labels.add(label)
        source = Source(place.path, label, int(spool_gb * 1e9), left, place.linked)
        if place.named:
            source.check()
        sources.append(source)
    return sources


def _places(path: str | Path) -> list[_Place]:
    """What lies at `path`; of a pattern, what matches, sorted, under names from where the pattern begins.

    So a name does not depend on what else matches. What lies in a folder that matches too comes with that.
    """
    whole = Path(path)
    try:
        if whole.exists():
            return [_Place(whole, whole.resolve().name)]
    except OSError as error:
        raise PackError(f"cannot read {path} ({error.strerror}): check the path and its rights") from None
    plain = next((n for n, part in enumerate(whole.parts) if glob.has_magic(part)), None)
    if plain is None:
        raise PackError(f"there is nothing at {path}: check the path")
    root = Path(*whole.parts[:plain])
    found = set(root.glob(str(Path(*whole.parts[plain:]))))  # pathlib's ** enters no links, so it does not go round
    outermost = sorted(place for place in found if not found.intersection(place.parents))
    if not outermost:
        raise PackError(f"nothing matches {path}: check the pattern (`**` stands for folders at any depth)")
    return [_Place(place, place.relative_to(root).as_posix(), False, _is_linked(place, root)) for place in outermost]


def _is_linked(place: Path, root: Path) -> bool:
    """Whether it is a link, or lies behind one, that the pattern and not the user named."""
    return any(one.is_symlink() for one in (place, *place.parents) if one.is_relative_to(root) and one != root)


def _in_folder(folder: Path, leaves: Collection[Path]) -> Iterator[Member]:
    """The files below a folder but not in `leaves`, in the order of their names, whatever that of the file system."""
    waiting, names = [folder], {leaf.name for leaf in leaves}
    while waiting:
        place = waiting.pop()
        name = place.relative_to(folder).as_posix()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            yield Member(name, 0, io.BytesIO, f"a folder that cannot be read ({error.strerror})")
            continue
        folders = []
        for entry in entries:
            if entry.name in names and Path(entry.path).resolve() in leaves:
                continue
            if entry.is_dir(follow_symlinks=False) and (reason := _made_here(Path(entry.path))):
                yield Member(Path(entry.path).relative_to(folder).as_posix(), 0, io.BytesIO, reason)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            else:
                yield _member(Path(entry.path), Path(entry.path).relative_to(folder).as_posix())
        waiting += reversed(folders)


_PACKED = "a folder of shards that `pack` made: pack what it was made of, or name this folder itself"


_PACKING = "the working folder of a pack that is not finished: finish it, or remove it"


def _made_here(folder: Path) -> str:
    """Why a folder that `pack` made holds no radiographs to pack; empty where it made none."""
    if folder.name.endswith(WORKING) and folder.name.startswith("."):
        return _PACKING
    return _PACKED if is_pack(folder) else ""


def _member(path: Path, name: str) -> Member:
    """A file that lies by itself on the disk."""
    try:
        facts = path.lstat()
    except OSError as error:
        return Member(name, 0, io.BytesIO, f"it cannot be read ({error.strerror})")
    refused = refusal(stat.S_ISLNK(facts.st_mode), not stat.S_ISREG(facts.st_mode))
    return Member(name, facts.st_size, partial(_opened, path), refused, f"{facts.st_size}-{facts.st_mtime_ns}", path)


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")
