"""The settings of a pack."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_shards.annotations.labels import Withheld
from data_shards.errors import PackError
from data_shards.pack.crop import MARGIN, MAX_ASPECT, MIN_CONTRAST, MIN_SIDE, Rules
from data_shards.pack.crop_job import CODEC, Settings
from data_shards.pack.perceptual_hash import BITS, WITHIN
from data_shards.shards.manifest import MANIFEST
from data_shards.sources.limits import SPOOL_GB


@dataclass(frozen=True)
class PackConfig:
    """What to pack, and how."""

    sources: Sequence[str | Path]
    """Folders, zip, tar or 7z archives, image files, or quoted patterns of them ('clinic/**/*.zip'). Archives in them
    are read too. Nothing is unpacked."""
    out: str | Path
    """The shard folder to make; it must not hold a finished pack."""
    boxes: str = "auto"
    """auto: boxes of the kind of annotations that covers most radiographs of a source, else a table that labels whole
    images, else, where nothing looks like annotations, whole images, and say so; coco, labelme, cvat, label_studio,
    via, supervisely, csv, voc, yolo, lines, masks: that kind alone; none: whole images;
    folders: whole images, each with the name of the folder that directly holds it as its `class` (never found by auto,
    as folders may be named after patients); labelled: as auto, but folders where auto takes bare images; or a file,
    folder or archive with the annotations. auto, because most archives carry their boxes."""
    patient: str | None = None
    """Regular expression on `archive/member`; its first group (or whole match) is the patient. Left out, radiographs go
    by the patients' column of a table, DICOM files by the patient id in their header, and every other radiograph counts
    as one patient, since nothing in a file name says otherwise by itself."""
    patient_column: str | None = None
    """Column of the tables that says whose a radiograph is, instead of --patient. Left out, one that is called
    `patient`, `patient_id`, `subject`, `case` or the like, as no other may be meant."""
    masks: str | None = None
    """Folder of the masks to use, or the ending of their names (`Segmentation/teeth`, `_teeth`), where masks of several
    kinds lie beside the radiographs. None, as one kind needs no choice."""
    depth: Literal[8, 16] = 8
    """Bits of the stored pixels: 8 keeps the highest 8, 16 all that the source has. 8, as detectors' lowest bits are
    mostly noise, which no codec shortens; training takes either."""
    burned_in: Literal["reject", "keep"] = "reject"
    """What becomes of DICOM files that say that names are burnt into their pixels, and of secondary captures, which
    often have them. reject, since a name in the pixels cannot be taken out again."""
    pixel_aspect: float | None = None
    """Displayed width of a stored pixel over its height. Crops are stretched so that their pixels are square. Left
    out, what the file declares, else 1, as detectors have square pixels and only rescaled images do not."""
    workers: int = 1
    """Processes that decode, crop and encode. They do not change a byte. 1, so that a shared machine is asked first."""
    dask: str | None = None
    """Address of a Dask scheduler (tcp://host:8786) whose workers decode, crop and encode instead of --workers. The
    sources are read here and travel to them. None, as few archives need more than one machine."""
    key: str | Path | bytes | None = None
    """File with the secret that ids are made with (made with mode 0600 if absent). Left out, the user's own key, so
    that one patient is one id across packs."""
    against: Sequence[str | Path] = ()
    """Earlier shard folders; radiographs with the same pixels are dropped. None, as the first pack has no other."""
    holdout: float = 0.0
    """Share of the patients, chosen by a hash of their ids, that goes to OUT/holdout. 0: a test set is asked for."""
    labels: Sequence[str] = ()
    """Labels whose texts travel whatever they say: columns of the table that are not known, and known ones (`class`,
    `finding` ...) with other texts than dental terms. None, as any other column or text may be a name."""
    margin: float = MARGIN
    """Share of a box's sides added on each side. 0.05 takes in the periodontal ligament, which boxes leave out."""
    min_side: int = MIN_SIDE
    """Square pixels that a box must show on each side. Under 8 nothing of a tooth's structure is left."""
    max_side: int | None = None
    """Pixels of a stored crop's longer side; larger ones are shrunk. None, as what is shrunk is lost."""
    max_aspect: float = MAX_ASPECT
    """Longer over shorter side of a crop, beyond which it is none: 10, as teeth reach 6."""
    min_contrast: float = MIN_CONTRAST
    """Standard deviation of a crop's pixels, in shares of full scale, below which it is blank: 0.01, as the flattest
    of 11,558 teeth has 0.037."""
    near_bits: int | None = None
    """Radiographs whose perceptual hashes (of 256 bits) differ in at most so many are near duplicates: their patients
    become one. -1: not sought. Left out, 32, but none are sought where whole images are the crops, as neighbouring
    teeth look alike."""
    drop_near: bool = False
    """Drop the later of two near duplicates. False, as two exposures of one mouth are two radiographs."""
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
    if config.patient and config.patient_column:
        raise PackError("--patient and --patient-column both say whose a radiograph is: give one of them")
    given = {"a source": config.sources, "--out": [config.out], "--boxes": [config.boxes], "--against": config.against}
    for name, values in given.items():
        if "" in values:  # of a shell variable that is not set; as a path it would be the current folder
            raise PackError(f"{name} is empty: name a path, or leave it out")
    out = Path(config.out)
    if (out / MANIFEST).exists():
        raise PackError(f"{out} already holds a finished pack: name another --out, or remove it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PackError(f"{out} exists and is not an empty folder: name another --out, or remove it")
    if out.is_symlink() or out.is_mount():
        raise PackError(
            f"{out} is a link or a mount point, which cannot be given to a finished pack: name a folder in it"
        )
    for earlier in map(Path, config.against):
        if not (earlier / MANIFEST).is_file():
            raise PackError(f"no pack at {earlier} to compare --against: give shard folders that `pack` made")
    if not config.sources:
        raise PackError("nothing to pack: name a folder, an archive or an image")
    if isinstance(config.key, str | Path) and out.resolve() in Path(config.key).resolve().parents:
        raise PackError(f"the key {config.key} would lie in the shards that it protects: keep it elsewhere")
    if config.pixel_aspect is not None:
        check_pixel_aspect(config.pixel_aspect)
    if not 0 <= config.holdout < 1:
        raise PackError(f"holdout {config.holdout}: give the share of patients to hold out, from 0 to under 1")
    if config.workers < 1:
        raise PackError(f"{config.workers} workers: give at least 1")
    if not 0 <= config.margin < math.inf or config.min_side < 1:
        raise PackError(f"margin {config.margin}, min_side {config.min_side}: give at least 0 and at least 1")
    if config.max_side is not None and config.max_side < config.min_side:
        raise PackError(f"max_side {config.max_side}: give at least min_side, {config.min_side}")
    if not config.max_aspect >= 1 or not 0 <= config.min_contrast < 0.5:
        raise PackError(
            f"max_aspect {config.max_aspect}, min_contrast {config.min_contrast}: give at least 1 and 0 to under 0.5"
        )
    if config.near_bits is not None and not -1 <= config.near_bits < BITS // 2:
        raise PackError(f"near_bits {config.near_bits}: give -1 (none are sought) or 0 to {BITS // 2 - 1}")
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


def within(config: PackConfig, whole: bool) -> int | None:
    """Bits within which near duplicates are sought, None for not at all; `whole`: whole images are the crops."""
    if config.near_bits is None:
        return None if whole else WITHIN
    return None if config.near_bits < 0 else config.near_bits


def conversion(config: PackConfig, whole: bool) -> Settings:
    """The settings that a radiograph's crops depend on."""
    return Settings(
        depth=config.depth,
        burned_in=config.burned_in,
        pixel_aspect=config.pixel_aspect,
        own_patient=config.patient is None,
        hashed=within(config, whole) is not None,
        rules=Rules(config.margin, config.min_side, config.max_side, config.max_aspect, config.min_contrast),
    )


def recorded(config: PackConfig, boxes: str, whole: bool, withheld: Mapping[str, Withheld]) -> dict[str, Any]:
    """What the manifest says of the settings: all that shapes the shards, nothing that may hold a name.

    `boxes` is the format found, `withheld` what of the labels stays behind.
    """
    told = sorted(withheld.items())
    return {
        "boxes": boxes,
        "patients": "by pattern" if config.patient else "by table, else by DICOM header, else one per radiograph",
        "depth": config.depth,
        "burned_in": config.burned_in,
        "pixel_aspect": config.pixel_aspect or "as declared",
        "margin": config.margin,
        "min_side": config.min_side,
        "max_side": config.max_side,
        "max_aspect": config.max_aspect,
        "min_contrast": config.min_contrast,
        "near_bits": within(config, whole),
        "drop_near": config.drop_near,
        "holdout": config.holdout,
        "shard_mb": config.shard_mb,
        "shard_samples": config.shard_samples,
        "codec": CODEC,
        "polarity": "dense is bright, as stored in the sources",
        **({"withheld": {name: {"texts": w.texts, "boxes": w.boxes} for name, w in told}} if told else {}),
    }


def check_pixel_aspect(ratio: float) -> None:
    """Raise PackError unless `ratio` can be the width over the height of a pixel."""
    if not 0.05 <= ratio <= 20:
        raise PackError(f"pixel aspect {ratio}: give width over height of a pixel, 0.05 to 20")
