"""Names as different systems spell them: decomposed, in another code page, percent-encoded, with a prefix."""

import contextlib
import re
import unicodedata
from urllib.parse import unquote

_WRONG = ("cp437", "cp1252", "latin-1", "mac_roman", "cp850", "gbk", "cp932", "cp866", "cp1251")
"""Code pages in which a name's bytes may have been read by mistake: a zip's names without a mark are cp437."""
_RIGHT = ("utf-8", "gbk", "cp932", "cp850", "mac_roman", "cp1252", "cp437", "big5", "euc_kr", "cp1251", "cp866")
"""Code pages in which a name may have been written."""
_UPLOAD = re.compile(r"(^|/)[0-9a-f]{8}-(?=[^/])")
"""What Label Studio puts before the name of a file that is uploaded."""
_SUBSETS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


def composed(name: str) -> str:
    """Return a name in composed form (Unicode NFC), as text even where its bytes are none in UTF-8."""
    if name.isascii():
        return name
    with contextlib.suppress(UnicodeError):  # bytes that are no UTF-8 are of an old archive, written under Windows
        name.encode()
        return unicodedata.normalize("NFC", name)
    return name.encode("utf-8", "surrogateescape").decode("cp1252", "replace")


def folded(name: str) -> str:
    """Return a name without regard to case."""
    return composed(name).casefold()


def variants(name: str) -> set[str]:
    """Return what a name may have been before it was percent-encoded, uploaded, or read in a wrong code page."""
    plain = {name, unquote(name), unquote(unquote(name)), unquote(name.replace("+", " "))}
    found = set(plain)
    for one in plain:
        if not one.isascii():
            found |= _decoded(one)
    found |= {unquote(one) for one in found}
    without = {_UPLOAD.sub(r"\1", one) for one in found}
    return {folded(one) for one in found | without}


def _decoded(name: str) -> set[str]:
    raws: set[bytes] = set()
    try:
        name.encode()
    except UnicodeError:
        raws.add(name.encode("utf-8", "surrogateescape"))
        with contextlib.suppress(UnicodeError):  # of a text that was read as cp1252, where that has no such byte
            raws.add(name.encode("cp1252", "surrogateescape"))
    else:
        for page in _WRONG:
            with contextlib.suppress(UnicodeError):
                raws.add(name.encode(page))
    found: set[str] = set()
    for raw in raws:
        for page in _RIGHT:
            with contextlib.suppress(UnicodeError):
                found.add(raw.decode(page))
    return found


def subset_words(name: str) -> list[str]:
    """Return the words and numbers of a folder's or file's name, in which `Training` and `train` are one."""
    return [_SUBSETS.get(word, word) for word in re.findall(r"[^\W\d_]+|\d+", name.lower())]
