"""Whether the books of a shard folder agree: manifest, files, ledgers, rejected inputs, holdout."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_shards.errors import ShardError
from data_shards.ledger import LEDGERS
from data_shards.shards.manifest import INDEX, MANIFEST, NEAR, REJECTED, read_manifest, sealed, stated
from data_shards.shards.statistics import Tally
from data_shards.shards.writer import FORMAT

_IDS = {"files": "source", "radiographs": "radiograph", "boxes": "key"}
_LISTS = {"index": INDEX, "rejected": REJECTED, "near": NEAR}
_SHARES = {"files": ("files", "seen"), "radiographs": ("radiographs", "used"), "crops": ("boxes", "used")}
"""What the shares of the sources add up to, in the ledgers."""
_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that an operating system leaves in folders it shows."""
_FILE = {"name": str, "bytes": int, "sha256": str}
_COUNTS = {"samples": int, "radiographs": int, "patients": int}
FORM: dict[str, Any] = {
    "key": str,
    "settings": dict,
    "statistics": {
        **_COUNTS,
        **dict.fromkeys(("pixel_mean", "pixel_std"), float),
        **dict.fromkeys(("width", "height", "aspect", "labels"), dict),
    },
    "index": _FILE,
    "rejected": _FILE,
    "shards": [{**_FILE, "samples": int}],
    "ledgers": {name: dict.fromkeys(("seen", "used", "rejected"), int) for name in LEDGERS},
    "reasons": dict.fromkeys(LEDGERS, dict),
    "part": str,
}
"""Form of a manifest (`misfit`)."""
MAIN = {"holdout": _COUNTS, "sources": [{"id": str, "files": int, "radiographs": int, "crops": int}]}
"""What the main part's manifest has beside that."""


class Part(NamedTuple):
    """A shard folder: its manifest, and what was found in its shards (IDS [samples], and counts)."""

    manifest: dict[str, Any]
    ids: np.ndarray
    tally: Tally


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a `.jsonl` file. Raises OSError or ValueError where it cannot be read."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_files(folder: Path, part: str = "main") -> Iterator[str]:
    """What is wrong with the files of a folder and its holdout, short of the shards' content: a line each.

    Raises ShardError where the manifest is of another form, so that nothing in it could be read.
    """
    manifest = _read(folder, part)
    if (folder / MANIFEST).read_bytes() != sealed(manifest):
        yield f"{folder / MANIFEST} was changed (its own checksum differs): copy it, or pack again"
    listed = {shard["name"]: shard for shard in manifest["shards"]}
    lists = {name: manifest[name] for name in ("index", "rejected", "near") if name in manifest}
    held = manifest.get("holdout", {}).get("samples", 0)
    ours = {MANIFEST, *listed, *(said["name"] for said in lists.values()), *(["holdout"] if held else [])}
    for path in sorted(folder.iterdir()):
        if path.name not in ours and not (path.name in _SYSTEMS and path.is_file()):
            yield f"{path} is not of this pack: remove it, or keep it elsewhere"
    for name, shard in listed.items():
        path = folder / name
        if not path.is_file():
            yield f"the shard {path} is missing: copy it, or pack again"
        elif path.stat().st_size != shard["bytes"]:
            yield f"the shard {path} has {path.stat().st_size} bytes, not {shard['bytes']}: copy or pack it again"
    for said in lists.values():
        if not _as_stated(folder, said):
            yield f"{folder / said['name']} is missing or damaged: copy or pack it again"
    if held:
        yield from _check_holdout(folder, manifest)


def _read(folder: Path, part: str) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if manifest.get("format") != FORMAT:
        raise ShardError(
            f"{folder / MANIFEST} is of format {manifest.get('format')!r}, and format {FORMAT} is verified: pack again"
        )
    form = FORM | (MAIN if part == "main" else {}) | ({"near": _FILE} if "near" in manifest else {})
    wrong = misfit(manifest, form) or next(
        (name for name, file in _LISTS.items() if name in manifest and manifest[name]["name"] != file), ""
    )
    if wrong or manifest["part"] != part:
        raise ShardError(f"{folder / MANIFEST} has no valid `{wrong or 'part'}`: copy it, or pack again")
    return manifest


def misfit(value: Any, form: Any, place: str = "") -> str:
    """Where, by its path of names, a value is first of another form; "" where it fits.

    A form is a type, or a dict of the forms of named values, or a list with the form of all elements.
    """
    if isinstance(form, type):
        return "" if isinstance(value, form) and not (form is int and isinstance(value, bool)) else place
    if not isinstance(value, type(form)):
        return place or "content"
    items = {str(n): one for n, one in enumerate(value)} if isinstance(form, list) else value
    forms = dict.fromkeys(items, form[0]) if isinstance(form, list) else form
    for name, wanted in forms.items():
        below = f"{place}.{name}" if place else name
        if name not in items:
            return below
        if wrong := misfit(items[name], wanted, below):
            return wrong
    return ""


def _as_stated(folder: Path, said: dict[str, Any]) -> bool:
    path = folder / said["name"]
    return path.is_file() and stated(path) == said


def _check_holdout(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    held, below = manifest["holdout"], folder / "holdout"
    if not (below / MANIFEST).is_file():
        yield f"the holdout {below} with its {held['samples']} samples is missing: copy it, or pack again"
    elif stated(below / MANIFEST)["sha256"] != held.get("sha256"):
        yield f"{below} is not the holdout of this pack, or its {MANIFEST} was changed: copy or pack it again"
    else:
        yield from check_files(below, "holdout")


def check_books(folder: Path, parts: Sequence[Part]) -> Iterator[str]:
    """Where manifests, ledgers, rejected inputs and samples disagree, a line each.

    `parts`: the folder, and then its holdout if it has one.
    """
    manifest = parts[0].manifest
    ids = np.concatenate([part.ids for part in parts])
    try:
        yield from _check_ledgers(folder, manifest, read_lines(folder / REJECTED), ids)
        yield from _check_near(folder, ids)
    except (OSError, ValueError, KeyError, TypeError):
        yield f"{folder / REJECTED}, {NEAR} or the ledgers of {MANIFEST} cannot be read: copy them, or pack again"
    for part, place in zip(parts, (folder, folder / "holdout"), strict=False):
        counted, said = part.tally.statistics(), part.manifest["statistics"]
        if wrong := [name for name, value in counted.items() if said[name] != value]:
            yield f"the statistics in {place / MANIFEST} are not those of its samples ({', '.join(wrong)}): pack again"
    used = {name: manifest["ledgers"][ledger][count] for name, (ledger, count) in _SHARES.items()}
    if any(sum(share[name] for share in manifest["sources"]) != count for name, count in used.items()):
        yield f"the shares of the sources in {folder / MANIFEST} are not those of its ledgers: pack again"
    if len(parts) == 2:
        yield from _check_parts(folder, *parts)


def _check_parts(folder: Path, main: Part, held: Part) -> Iterator[str]:
    if any(main.manifest[name] != held.manifest[name] for name in ("key", "settings")):
        yield f"{folder} and its holdout are of two packs: pack again"
    said = {name: main.manifest["holdout"][name] for name in ("samples", "radiographs", "patients")}
    if any(held.manifest["statistics"][name] != count for name, count in said.items()):
        yield f"{folder / MANIFEST} counts its holdout as {said}, which is not what that holds: pack again"
    own = {name: len(np.unique(held.ids[_IDS[name]])) for name in LEDGERS}
    balanced = {name: {"seen": count, "used": count, "rejected": 0} for name, count in own.items()}
    if held.manifest["ledgers"] != balanced or any(held.manifest["reasons"].values()):
        yield f"the ledgers in {folder / 'holdout' / MANIFEST} are not those of its samples: pack again"
    if len(shared := np.intersect1d(main.ids["patient"], held.ids["patient"])):
        yield f"{len(shared)} patients are both in {folder} and in its holdout: pack again"


def _check_near(folder: Path, ids: np.ndarray) -> Iterator[str]:
    """Radiographs that are nearly the same must be one patient's, so that no holdout parts them."""
    lines = read_lines(folder / NEAR) if (folder / NEAR).is_file() else []
    patient_of = dict(zip(ids["radiograph"].tolist(), ids["patient"].tolist(), strict=True)) if lines else {}
    for line in lines:
        patients = {patient_of[number] for r in line["radiographs"] if (number := int(r, 16)) in patient_of}
        if len(patients) > 1:
            yield f"{folder / NEAR} joins two radiographs whose samples are of two patients: pack again"


def _check_ledgers(
    folder: Path, manifest: dict[str, Any], rejected: Sequence[dict[str, Any]], ids: np.ndarray
) -> Iterator[str]:
    reasons = Counter((line["ledger"], line["reason"]) for line in rejected)
    for name in LEDGERS:
        ledger = manifest["ledgers"][name]
        if ledger["seen"] != ledger["used"] + ledger["rejected"]:
            yield f"the ledger of {name} in {folder / MANIFEST} does not balance: pack again"
        told = {reason: count for (of, reason), count in reasons.items() if of == name}
        if told != manifest["reasons"][name] or sum(told.values()) != ledger["rejected"]:
            yield f"{folder / REJECTED} lists other {name} than the ledger in {MANIFEST}: pack again"
        refused = np.array([int(line["id"], 16) for line in rejected if line["ledger"] == name], np.uint64)
        if len(both := np.intersect1d(refused, ids[_IDS[name]])):
            yield f"{len(both)} {name} are both rejected and used in {folder}: pack again"
        used = len(np.unique(ids[_IDS[name]]))
        if used > ledger["used"] or (name != "files" and used != ledger["used"]):
            yield f"{folder / MANIFEST} says {ledger['used']} used {name}, its samples {used}: pack again"
