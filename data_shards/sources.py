"""What can be packed: a folder, a zip, a tar (gz, bz2, xz), a 7z or one file, as a stream of members.

Members are read from where they lie, one after another, and nothing is written under a member's name, so a name that
climbs out of its archive, is absolute or stands there twice does no harm. Links are not followed.
"""

import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from data_shards.errors import MemberError, PackError
from data_shards.member import DAMAGE, MAX_MEMBER_BYTES, Member, too_large
from data_shards.sevenzip import check_archive, packed_members


@dataclass(frozen=True)
class Source:
    """Something to pack. `label` stands for it in the names that ids are made of, wherever it lies on the disk."""

    path: Path
    label: str
    stream: Callable[[Path], Iterator[Member]]

    def members(self) -> Iterator[Member]:
        """Its files, each under a name of its own (`x#2` where an archive holds `x` twice).

        Raises MemberError where it ends early.
        """
        names: set[str] = set()
        try:
            for member in self.stream(self.path):
                name, count = member.name, 1
                while name in names:
                    count += 1
                    name = f"{member.name}#{count}"
                names.add(name)
                member.name = name
                yield member
                member.close()
        except DAMAGE as error:
            if isinstance(error, MemberError):
                raise
            raise MemberError(f"the archive is damaged or ends early ({type(error).__name__})") from None

    def name_of(self, member_name: str) -> str:
        """The name under which a member is known: `label/member`."""
        return f"{self.label}/{member_name}"


def open_sources(paths: Sequence[str | Path]) -> list[Source]:
    """The sources at `paths`, recognised by content. Raises PackError for one that is not there or cannot be read."""
    sources: list[Source] = []
    for path in map(Path, paths):
        label = path.resolve().name
        twins = sum(s.path.resolve().name == label for s in sources)
        sources.append(Source(path, f"{label}#{twins + 1}" if twins else label, _stream_for(path)))
    return sources


def _stream_for(path: Path) -> Callable[[Path], Iterator[Member]]:
    try:
        if path.is_dir():
            return _folder
        with path.open("rb") as file:
            head = file.read(8)
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):  # is_zipfile alone takes a tar that ends in a zip for one
            if zipfile.is_zipfile(path):
                return _zip
            raise PackError(f"{path} is a zip without its end: it was cut short, copy it again")
        if head.startswith(b"7z\xbc\xaf\x27\x1c"):
            check_archive(path)
            return _seven_zip
        return _tar if tarfile.is_tarfile(path) else _single
    except FileNotFoundError:
        raise PackError(f"nothing to pack at {path}: check the path") from None
    except DAMAGE as error:
        if isinstance(error, PackError):
            raise
        raise PackError(f"cannot read {path} ({error}): check the file and its rights") from None


def _single(path: Path) -> Iterator[Member]:
    yield Member(path.name, path.stat().st_size, partial(_open, path), stamp=_stamp(path.stat()))


def _folder(path: Path) -> Iterator[Member]:
    unreadable: list[OSError] = []
    for folder, folders, files in os.walk(path, onerror=unreadable.append):
        folders.sort()
        linked = [name for name in folders if (Path(folder) / name).is_symlink()]  # os.walk does not enter them
        for name in sorted(files + linked):
            file = Path(folder) / name
            link, facts = file.is_symlink(), file.lstat()
            refused = _refusal(link, not link and not file.is_file(), facts.st_size)
            name = file.relative_to(path).as_posix()
            yield Member(name, facts.st_size, partial(_open, file), refused, _stamp(facts))
    for error in unreadable:
        name = Path(str(error.filename)).relative_to(path).as_posix()
        yield Member(name, 0, partial(_open, path), "a folder that may not be read")


def _zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            link = (info.external_attr >> 16) & 0o170000 == 0o120000
            refused = "encrypted: pack a decrypted copy" if info.flag_bits & 1 else ""
            yield Member(
                info.filename,
                info.file_size,
                partial(archive.open, info),
                refused or _refusal(link, False, info.file_size),
                f"{info.CRC:08x}-{info.file_size}",
            )


def _tar(path: Path) -> Iterator[Member]:
    stamp = _stamp(path.stat())
    with tarfile.open(path, "r|*") as archive:
        for info in archive:
            if info.isdir():
                continue
            yield Member(
                info.name,
                info.size,
                partial(_extract, archive, info),
                _refusal(info.issym() or info.islnk(), not info.isfile(), info.size),
                f"{stamp}/{info.size}-{info.mtime}",
            )


def _seven_zip(path: Path) -> Iterator[Member]:
    stamp = _stamp(path.stat())
    for member in packed_members(path):
        refused = _refusal(member.link, member.special, member.size)
        yield Member(member.name, member.size, member.open, refused, f"{stamp}/{member.crc}-{member.size}")


def _stamp(facts: os.stat_result) -> str:
    return f"{facts.st_size}-{facts.st_mtime_ns}"


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _extract(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    if file is None:
        raise OSError("not a regular file")
    return file


def _refusal(link: bool, special: bool, size: int) -> str:
    if link:
        return "a link, which is not followed"
    if special:
        return "not a regular file"
    return too_large(MAX_MEMBER_BYTES) if size > MAX_MEMBER_BYTES else ""
