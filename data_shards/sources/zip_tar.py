"""The members of a zip or tar, read forward with bounded memory."""

import struct
import tarfile
import zipfile
from collections.abc import Iterator
from copy import copy
from functools import partial
from typing import IO

from data_shards.errors import MemberError
from data_shards.sources.compression import Metered
from data_shards.sources.limits import MAX_TAR_HEADER, Expansion
from data_shards.sources.member import CHUNK, Checked, Member, Readable

LINK = "a link, which is not followed"
SPECIAL = "not a regular file"
ENCRYPTED = "encrypted: pack a decrypted copy"
CUT = "the archive ends early: copy it again"
BEHIND = "the archive goes on behind its end mark, as joined or damaged ones do: unpack it, and pack the folder"
_LISTED = 46  # bytes of a member in a zip's list, without its name
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}


def refusal(link: bool, special: bool) -> str:
    """Why a member of this kind is not read; empty where it is."""
    return LINK if link else SPECIAL if special else ""


def zip_members(file: IO[bytes], whole: Expansion) -> Iterator[Member]:
    """The files of a zip in the order of its list. Raises MemberError or anything of DAMAGE."""
    with _opened_zip(file) as archive:
        overlapping = _overlapping(archive)
        for number, info in enumerate(archive.filelist):
            if info.is_dir() and not info.file_size:
                continue
            refused = _refused_in_zip(info)
            if number in overlapping:
                refused = "its place in the archive overlaps another's, as in a decompression bomb"
            opened = partial(_open_in_zip, archive, info, whole)
            yield Member(info.filename, info.file_size, opened, refused, f"{info.CRC:08x}-{info.file_size}")


def _opened_zip(file: IO[bytes]) -> zipfile.ZipFile:
    try:
        try:
            return zipfile.ZipFile(file)
        except UnicodeDecodeError:
            return zipfile.ZipFile(_Forgiving(file))
    except zipfile.BadZipFile:
        raise MemberError("a zip whose list of members, at its end, is damaged or cut off: copy it again") from None


class _Forgiving:
    """A zip, in whose list the names that are not the UTF-8 that they are marked as lose that mark.

    For zipfile one such name makes the whole archive unreadable; so it is only that member, whose own header disagrees.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._listed = file, False
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        found = self._file.read(size)
        if self._listed or not found.startswith(b"PK\1\2"):
            return found
        self._listed = True
        listed, at = bytearray(found), 0
        while listed[at : at + 4] == b"PK\1\2" and at + _LISTED <= len(listed):
            name, extra, comment = struct.unpack_from("<3H", listed, at + 28)
            try:
                listed[at + _LISTED : at + _LISTED + name].decode()
            except UnicodeDecodeError:
                listed[at + 9] &= ~8
            at += _LISTED + name + extra + comment
        return bytes(listed)


def _refused_in_zip(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return ENCRYPTED
    if info.compress_type not in _METHODS:
        return f"compressed by zip's method {info.compress_type}, which is not known here: pack an unpacked copy"
    return refusal((info.external_attr >> 16) & 0o170000 == 0o120000, False)


def _overlapping(archive: zipfile.ZipFile) -> set[int]:
    """Numbers of members that reach into the next one's place, or into the list."""
    places = sorted((info.header_offset, number) for number, info in enumerate(archive.filelist))
    ends = [*(start for start, _ in places[1:]), archive.start_dir]
    header = 30  # bytes of a local header without its name
    return {
        number
        for (start, number), end in zip(places, ends, strict=False)
        if start + header + archive.filelist[number].compress_size > end
    }


def _open_in_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, whole: Expansion) -> Readable:
    # zipfile decodes all that it reads at once of bzip2 and LZMA: of 4 KiB at most 80 MB come
    most = 4096 if info.compress_type in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA) else CHUNK
    unchecked = copy(info)
    del unchecked.CRC  # zipfile drops what it has read where that is wrong; an inner archive may be whole up to there
    return Checked(Metered(archive.open(unchecked), Expansion(info.compress_size, whole), most), info.CRC)


def is_tar(head: bytes) -> bool:
    """Whether the first 512 bytes are a tar's: by its magic, or in the oldest form by the checksum."""
    if head[257:262] == b"ustar":
        return True
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def tar_members(file: Readable) -> Iterator[Member]:
    """The files of a tar in their order. Raises MemberError or anything of DAMAGE.

    The stamps are of size and time only; whoever knows the tar's own adds it.
    """
    forward = _Forward(file)
    with tarfile.TarFile(fileobj=forward, tarinfo=_Header, errors="surrogateescape") as archive:  # type: ignore[arg-type]
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else it remembers all
            if info.isdir() and not info.size:
                continue
            refused = refusal(info.issym() or info.islnk(), not info.isfile())
            if info.issparse():
                refused = "a sparse file: pack a copy made without `tar --sparse`"
            opened = partial(_Slice, forward, info.offset_data, info.size)
            yield Member(info.name, info.size, opened, refused, f"{info.size}-{info.mtime}")
    while more := forward.take(CHUNK):  # to the end: whatever contains this archive may check its sum there
        if more.count(0) != len(more):
            raise MemberError(BEHIND)


class _Header(tarfile.TarInfo):
    """tarfile takes a damaged header and a missing end for the end of the archive; here they are errors."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
            raise MemberError(CUT) from None
        except tarfile.HeaderError:
            raise MemberError("the archive is damaged: copy it again") from None


class _Forward:
    """A stream that does not turn back, as tarfile reads headers from it, of which none is large."""

    def __init__(self, file: Readable) -> None:
        self._file, self._position = file, 0
        self._seek = getattr(file, "seek", None)

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if size > MAX_TAR_HEADER:
            raise MemberError(f"a header of over {MAX_TAR_HEADER >> 10} KiB in the archive: unpack it, and pack that")
        found = b""
        while len(found) < size and (more := self.take(size - len(found))):
            found += more
        return found

    def take(self, size: int) -> bytes:
        found = self._file.read(size)
        self._position += len(found)
        return found

    def seek(self, position: int) -> None:
        if position < self._position:
            raise MemberError("the archive is damaged: copy it again")
        if self._seek is not None:
            self._seek(position)
            self._position = position
        while self._position < position:
            if not self.take(min(CHUNK, position - self._position)):
                raise MemberError(CUT)


class _Slice:
    """The `size` bytes of a tar from `start` on."""

    def __init__(self, forward: _Forward, start: int, size: int) -> None:
        forward.seek(start)
        self._forward, self._left = forward, size

    def read(self, size: int, /) -> bytes:
        found = self._forward.take(min(size, self._left)) if self._left else b""
        if self._left and not found:
            raise MemberError(CUT)
        self._left -= len(found)
        return found

    def close(self) -> None:
        """Nothing to let go of: the stream is the archive's."""
