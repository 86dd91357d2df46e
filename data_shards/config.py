"""The settings of a pack."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.convert import CODEC
from data_shards.crops import MARGIN, MIN_SIDE
from data_shards.errors import PackError
from data_shards.limits import SPOOL_GB
from data_shards.shard_set import MANIFEST


@dataclass(frozen=True)
class PackConfig:
    """What to pack, and how."""

    sources: Sequence[str | Path]
    """Folders, zip, tar or 7z archives, image files, or quoted patterns of them ('clinic/**/*.zip'). Archives in them
    are read too. Nothing is unpacked."""
    out: str | Path
    """The shard folder to make; it must not hold a finished pack."""
    boxes: str = "auto"
    """auto: look for a table of boxes, then for YOLO files, then for a table that labels whole images, else take whole
    images, and say so; none: whole images; folders: whole images, each with the name of the folder that directly holds
    it as its `class` (never found by auto, as folders may be named after patients); labelled: as auto, but folders
    where auto takes bare images; or a table, label file, folder or archive with the annotations. auto, because most
    archives carry their boxes."""
    patient: str | None = None
    """Regular expression on `archive/member`; its first group (or whole match) is the patient. Left out, each
    radiograph counts as one patient, since nothing in a file name says otherwise by itself."""
    pixel_aspect: float = 1.0
    """Displayed width of a stored pixel over its height. Crops are stretched so that their pixels are square; 1, as
    detectors have square pixels and only rescaled images do not."""
    workers: int = 1
    """Processes that decode, crop and encode. They do not change a byte. 1, so that a shared machine is asked first."""
    key: str | Path | bytes | None = None
    """File with the secret that ids are made with (made with mode 0600 if absent). Left out, the user's own key, so
    that one patient is one id across packs."""
    against: Sequence[str | Path] = ()
    """Earlier shard folders; radiographs with the same pixels are dropped. None, as the first pack has no other."""
    holdout: float = 0.0
    """Share of the patients, chosen by a hash of their ids, that goes to OUT/holdout. 0: a test set is asked for."""
    labels: Sequence[str] = ()
    """Columns of the table to keep as labels beside the known ones. None, as any other column may hold a name."""
    margin: float = MARGIN
    """Share of a box's sides added on each side. 0.05 takes in the periodontal ligament, which boxes leave out."""
    min_side: int = MIN_SIDE
    """Square pixels that a box must show on each side. Under 8 nothing of a tooth's structure is left."""
    shard_mb: float = 64.0
    """A shard's size in 10^6 bytes: big enough for one request to an object store, small enough to copy again."""
    shard_samples: int = 4096
    """A shard's most samples, so that small crops still make enough shards for many readers."""
    spool_gb: float = SPOOL_GB
    """Size in 10^9 bytes that the one temporary file for zip and 7z archives inside other archives may reach. It lies
    in TMPDIR and has no name. 20, as a larger archive is better packed as a source of its own."""
    quiet: bool = False
    """Print nothing, draw no progress bar. False, since a pack may take hours."""


def check(config: PackConfig) -> re.Pattern[str] | None:
    """Every setting that can be judged at once, before hours are spent. Returns the patient pattern.

    Raises PackError.
    """
    out = Path(config.out)
    if (out / MANIFEST).exists():
        raise PackError(f"{out} already holds a finished pack: name another --out, or remove it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PackError(f"{out} exists and is not an empty folder: name another --out, or remove it")
    if not config.sources:
        raise PackError("nothing to pack: name a folder, an archive or an image")
    if isinstance(config.key, str | Path) and out.resolve() in Path(config.key).resolve().parents:
        raise PackError(f"the key {config.key} would lie in the shards that it protects: keep it elsewhere")
    check_pixel_aspect(config.pixel_aspect)
    if not 0 <= config.holdout < 1:
        raise PackError(f"holdout {config.holdout}: give the share of patients to hold out, from 0 to under 1")
    if config.workers < 1:
        raise PackError(f"{config.workers} workers: give at least 1")
    if not 0 <= config.margin < math.inf or config.min_side < 1:
        raise PackError(f"margin {config.margin}, min_side {config.min_side}: give at least 0 and at least 1")
    if not 0 <= config.spool_gb < math.inf:
        raise PackError(f"spool_gb {config.spool_gb}: give 0 (no archives that must be copied) or more 10^9 bytes")
    if not 0 < config.shard_mb < math.inf or config.shard_samples < 1:
        raise PackError(
            f"shard_mb {config.shard_mb}, shard_samples {config.shard_samples}: both must be above 0 and finite"
        )
    try:
        return re.compile(config.patient) if config.patient else None
    except re.error as error:
        raise PackError(f"--patient {config.patient!r} is no regular expression ({error}): correct it") from None


def recorded(config: PackConfig, boxes: str) -> dict[str, Any]:
    """What the manifest says of the settings: all that shapes the shards, nothing that may hold a name.

    `boxes` is the format found.
    """
    return {
        "boxes": boxes,
        "patients": "by pattern" if config.patient else "one per radiograph",
        "pixel_aspect": config.pixel_aspect,
        "margin": config.margin,
        "min_side": config.min_side,
        "holdout": config.holdout,
        "shard_mb": config.shard_mb,
        "shard_samples": config.shard_samples,
        "codec": CODEC,
        "polarity": "dense is bright, as stored in the sources",
    }


def check_pixel_aspect(ratio: float) -> None:
    """Raise PackError unless `ratio` can be the width over the height of a pixel."""
    if not 0.05 <= ratio <= 20:
        raise PackError(f"pixel aspect {ratio}: give width over height of a pixel, 0.05 to 20")
