"""Archives inside archives: each file's kind is told by its content, and an archive is replaced by what it holds.

zip and 7z keep their list of members at the end: one that lies by itself on the disk is read there, one inside another
archive is copied to the spool first. tar, and what is only compressed, is read forward wherever it lies.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import PurePosixPath
from typing import IO

from data_shards.errors import MemberError
from data_shards.sources.compression import compression_of, decompressed
from data_shards.sources.limits import MAX_DEPTH, MAX_MEMBER_BYTES, Expansion, too_large
from data_shards.sources.member import DAMAGE, Member, Readable, reason_of
from data_shards.sources.sevenzip import seven_zip_members
from data_shards.sources.spool import Spool
from data_shards.sources.zip_tar import is_tar, tar_members, zip_members

_OFFICE = (b"[Content_Types].xml", b"_rels/", b"docProps/", b"mimetype", b"META-INF/")
"""First members of documents and programs that are zips inside: their pictures are no radiographs of an archive."""
_CLOSED = {
    b"Rar!\x1a\x07": "a RAR archive, which only its maker's program reads: pack an unpacked copy",
    b"PK\x07\x08": "a part of a split zip: join the parts first",
    b"\x04\x22\x4d\x18": "an LZ4 archive: pack an unpacked copy",
    b"\x1f\x9d": "an archive of `compress`: pack an unpacked copy",
    b"MSCF": "a cabinet archive: pack an unpacked copy",
    b"MZ\x90\0": "a program, perhaps an archive that unpacks itself: if it holds radiographs, pack what it unpacks",
    b"%PDF": "a PDF: if it holds radiographs, pack its pages saved as images",
}
_DISK = "an image of a disk: if it holds radiographs, mount or unpack it, and pack that folder"
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"/annex/objects/")
_POINTER = "a Git LFS pointer, not the file that it stands for: run `git lfs pull` (or `git annex get`) first"
_APPLE = "a macOS side file (AppleDouble) without an image: nothing to do"
REST_LOST = "the rest of this archive is lost"


def archive_kind(head: bytes) -> str:
    """`zip`, `7z`, `tar` or a compression by a file's first bytes; empty where it is no archive."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "" if head[30:].startswith(_OFFICE) else "zip"
    if head.startswith(b"7z\xbc\xaf\x27\x1c"):
        return "7z"
    return compression_of(head) or ("tar" if is_tar(head) else "")


def hopeless(name: str, head: bytes) -> str:
    """Why a file by its name and first bytes can be neither image nor annotation nor archive; empty where it may be."""
    path = PurePosixPath(name)
    if "__MACOSX" in path.parts or (path.name.startswith("._") and head.startswith(b"\0\5\x16\7")):
        return _APPLE
    if head.startswith(_POINTERS):
        return _POINTER
    if path.suffix.lower() in (".iso", ".img", ".dmg", ".nrg", ".vhd") and not head[:512].strip(b"\0"):
        return _DISK
    return next((reason for signature, reason in _CLOSED.items() if head.startswith(signature)), "")


def unfolded(member: Member, spool: Spool, depth: int = 0, whole: Expansion | None = None) -> Iterator[Member]:
    """The member itself, or where it is an archive the files in it, and again in those, under `member/inner` names.

    An archive that cannot be read, or only in part, comes as one refused member behind what could be read of it.
    `depth` archives are around it, of which the outermost grows by `whole`.
    """
    try:
        head = member.head()
    except MemberError:  # whoever reads it is told the same
        yield member
        return
    kind = archive_kind(head)
    if reason := hopeless(member.name, head):
        member.refused = reason
    elif kind and depth == MAX_DEPTH:
        member.refused = f"an archive inside {MAX_DEPTH} others: unpack the outermost, and pack the folder"
    elif not kind and member.size > MAX_MEMBER_BYTES:
        member.refused = too_large(MAX_MEMBER_BYTES)
    if member.refused or not kind:
        yield member
        return
    count = 0
    try:
        for inner in inside(member, spool, depth, whole):
            count += 1
            inner.name = f"{member.name}/{inner.name}"
            yield inner
        member.refused = "" if count else "an archive without files"
    except MemberError as error:
        member.refused = f"{error}; {REST_LOST}" if count else str(error)
    if member.refused:
        yield member


def inside(member: Member, spool: Spool, depth: int = 0, whole: Expansion | None = None) -> Iterator[Member]:
    """The files in an archive, and in the archives in it. Raises MemberError where it is damaged or ends early."""
    whole = whole or Expansion(member.size)
    for inner in files_in(member, spool, whole):
        yield from unfolded(inner, spool, depth + 1, whole)
        inner.close()


def files_in(member: Member, spool: Spool, whole: Expansion) -> Iterator[Member]:
    """The files in an archive. Raises MemberError where it is damaged or ends early."""
    kind = archive_kind(member.head())
    read = _read_listed if kind in ("zip", "7z") else _read_forward
    try:
        yield from read(member, kind, spool, whole)
    except DAMAGE as error:
        raise MemberError(reason_of(error, "the archive is damaged or ends early")) from None


def _read_listed(member: Member, kind: str, spool: Spool, whole: Expansion) -> Iterator[Member]:
    with _at_any_place(member, spool) as (file, fault):
        try:
            yield from (zip_members if kind == "zip" else seven_zip_members)(file, whole)
        except DAMAGE:
            if not fault:
                raise
        if fault:  # the cause of whatever is wrong with it, too
            raise MemberError(fault)


def _read_forward(member: Member, kind: str, spool: Spool, whole: Expansion) -> Iterator[Member]:
    stream: Readable = member.path.open("rb") if member.path else member.stream()
    with closing(stream):
        if kind != "tar":
            content = decompressed(kind, stream, whole)
            sole = Member(PurePosixPath(member.name).stem, -1, lambda: content, stamp=member.stamp)
            if not is_tar(sole.head()):
                yield sole
                return
            stream = sole.stream()
        for inner in tar_members(stream):
            inner.stamp = f"{member.stamp}/{inner.stamp}"  # a tar keeps no checksums
            yield inner


@contextmanager
def _at_any_place(member: Member, spool: Spool) -> Iterator[tuple[IO[bytes], str]]:
    """The archive as a file to be read at any place, and why it is not whole, if it is not."""
    if member.path is None:
        with spool.holding(member.chunks(), member.size) as held:
            yield held
    else:
        with member.path.open("rb") as file:
            yield file, ""
