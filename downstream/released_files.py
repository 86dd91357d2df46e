"""The published files: 16 checkpoints and two demo data sets, by name, size and checksum."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from downstream.config import DownstreamError
from pretrain.config.released_backbones import RELEASED

DOI = "10.5281/zenodo.17308747"
"""Where the files are, for a person to fetch: nothing is downloaded here."""


class Published(NamedTuple):
    """A published file. `md5` has one checksum, or the two that circulate, in the order of `SETS`."""

    name: str
    backbone: str  # a short name; "" for a data set
    mix: str  # of data it was trained on
    megabytes: float  # MB = 10^6 bytes, rounded to two places as published
    md5: tuple[str, ...]


SETS = ("first set of checksums", "second set of checksums")
"""Two sets circulate for the six main files, of equal sizes; the first is the one of the release's README."""

_MD5: dict[str, tuple[str, ...]] = {
    "0_vit_public_ssl": ("d37fb4834cf48bba4cd906be5c9c5efb", "cb3319b2c17f9d52dd65e0b39a632ae2"),
    "0_vit_internal_ssl": ("264dc1eb16abd2563fbd428e0ea3c7a8", "e4f21d743553ab7ecad9e3c8d5914cf9"),
    "0_vit_combined_ssl": ("7bbdf511fb66b9c7216e612d379de843", "91e83df75d38106c43eae9570cc4f70b"),
    "0_convnextv2_public_ssl": ("4ba9483039b302bd4e77d16fd64f5f7b", "ef662610c09379a2054cc2ac34856f26"),
    "0_convnextv2_internal_ssl": ("07e17eaeb1b57d0661f3dcf90a5a998c", "2222038f363ca26a628c930a4590357f"),
    "0_convnextv2_combined_ssl": ("3164bc10d5f6da9cefae2989e58e47d2", "7ba1ba0a06cab6b6a698a5522218e088"),
    "1_densenet121_combined": ("bb726a20c38d8c5a2c71fb1c298d35d3",),
    "1_efficientnetv2_combined": ("b15fee8caa0fe890208955787d7491f7",),
    "1_VGG16_combined": ("e244249c22e806f85e5c8de5d15b3954",),
    "1_mobilenetv4_combined": ("67425bdba2e84b052c903cf1261b2ddd",),
    "1_resnext26_combined": ("4710adb2acc3b1cbe579c6752ad4dc43",),
    "1_fastvit_t8_combined": ("0c72f577215f5b7fe98a17071604c272",),
    "1_regnetz_combined": ("c4afcc076aa9819134a72713b62d80ab",),
    "1_ghostnetv3_combined": ("45e4ab4e9a49e47d2726593009e700a4",),
    "1_mambaout_combined": ("9ed069435646374232c2cf80f045df52",),
    "1_starnets4_combined": ("72ba0f77f4eadd682414a2f08bb370de",),
}

CHECKPOINTS: dict[str, Published] = {
    f"{stem}.pth": Published(
        f"{stem}.pth",
        short,
        next(m for m in ("public", "internal", "combined") if m in stem),
        release.megabytes,
        _MD5[stem],
    )
    for short, release in RELEASED.items()
    for stem in release.checkpoints
}
DATASETS: dict[str, Published] = {
    name: Published(name, "", "demo data", megabytes, (md5,))
    for name, megabytes, md5 in (
        ("ExAn-MTM Dataset.7z", 41.08, "ee822b8e231ce570c7d19ca92fef79d7"),
        ("Panoramic Dental Dataset.7z", 13.17, "4779446046ab2c6ea387e96abd57a9b1"),
    )
}
FILES = CHECKPOINTS | DATASETS

_LOWER = {name.lower(): published for name, published in FILES.items()}
_COPY = re.compile(r" ?\(\d+\)(?=\.\w+$)")  # what a browser adds to the name of a second download


class Identified(NamedTuple):
    """A file that is a published one, and in which set of checksums."""

    published: Published
    version: str  # one of SETS, "" where there is only one
    md5: str

    def __str__(self) -> str:
        what = f"{self.published.backbone}, {self.published.mix} data" if self.published.backbone else "a demo data set"
        return f"{self.published.name} of the release ({what}{f', {self.version}' if self.version else ''})"


def identify(path: Path) -> Identified | None:
    """Which published file lies at `path`, whatever it is called; None if it is none of them.

    Raises DownstreamError for a file with a published name that is not that file, or that cannot be read.
    """
    claimed = _LOWER.get(_COPY.sub("", path.name).lower())
    try:
        megabytes = path.stat().st_size / 1e6
        alike = [p for p in FILES.values() if abs(p.megabytes - megabytes) < 0.011]
        md5 = _md5(path) if claimed or alike else ""
    except OSError as error:
        raise DownstreamError(f"cannot read {path} ({error.strerror}): check the path and its rights") from None
    for published in alike:
        if md5 in published.md5:
            version = SETS[published.md5.index(md5)] if len(published.md5) > 1 else ""
            return Identified(published, version, md5)
    if claimed is None:
        return None
    wanted = " or ".join(f"{checksum} ({version})" for checksum, version in zip(claimed.md5, SETS, strict=False))
    raise DownstreamError(
        f"{path} is not what its name says: {megabytes:.2f} MB with MD5 {md5}, but the release's has "
        f"{claimed.megabytes:.2f} MB with {wanted if len(claimed.md5) > 1 else claimed.md5[0]}; fetch it again from "
        f"https://doi.org/{DOI}, or give your own weights another name"
    )


def table() -> str:
    """Every published file, a line each."""
    lines = [f"{'file':<30}{'backbone':<18}{'data':<11}{'C':>5}{'MB':>8}  MD5"]
    for file in FILES.values():
        channels = RELEASED[file.backbone].channels if file.backbone else ""
        start = f"{file.name:<30}{file.backbone:<18}{file.mix:<11}{channels:>5}{file.megabytes:>8.2f}  "
        lines.append(start + (" or ".join(file.md5)))
    lines.append(f"Fetch them from https://doi.org/{DOI}: nothing is downloaded here.")
    lines.append("Of the files with two MD5s both versions circulate; `verify` says which one a file is.")
    return "\n".join(lines)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
