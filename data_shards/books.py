"""Whether the books of a shard folder agree: manifest, files, ledgers, rejected inputs, holdout."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import ShardError
from data_shards.ledger import LEDGERS
from data_shards.manifest import MANIFEST, NEAR, REJECTED, read_manifest, sealed, stated

_IDS = {"files": "source", "radiographs": "radiograph", "boxes": "key"}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a `.jsonl` file. Raises OSError or ValueError where it cannot be read."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_files(folder: Path) -> Iterator[str]:
    """What is wrong with the files of a folder and its holdout, short of the shards' content: a line each."""
    try:
        manifest = read_manifest(folder)
        if (folder / MANIFEST).read_bytes() != sealed(manifest):
            yield f"{folder / MANIFEST} was changed (its own checksum differs): copy it, or pack again"
    except ShardError as error:
        yield str(error)
        return
    listed = {shard["name"]: shard for shard in manifest["shards"]}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield f"{path} is not one of the shards that {MANIFEST} lists: remove it, or pack it into another folder"
    for name, shard in listed.items():
        path = folder / name
        if not path.is_file():
            yield f"the shard {path} is missing: copy it, or pack again"
        elif path.stat().st_size != shard["bytes"]:
            yield f"the shard {path} has {path.stat().st_size} bytes, not {shard['bytes']}: copy or pack it again"
    for name in ("index", "rejected", "near"):
        if name in manifest and not _as_stated(folder, manifest[name]):
            yield f"{folder / manifest[name]['name']} is missing or damaged: copy or pack it again"
    yield from _check_holdout(folder, manifest)


def _as_stated(folder: Path, said: dict[str, Any]) -> bool:
    path = folder / said["name"]
    return path.is_file() and stated(path) == said


def _check_holdout(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    held, below = manifest.get("holdout", {}), folder / "holdout"
    if not held.get("samples"):
        if below.exists():
            yield f"{below} is not of this pack, which held nothing out: remove it"
    elif not (below / MANIFEST).is_file():
        yield f"the holdout {below} with its {held['samples']} samples is missing: copy it, or pack again"
    elif stated(below / MANIFEST)["sha256"] != held["sha256"]:
        yield f"{below} is not the holdout of this pack, or its {MANIFEST} was changed: copy or pack it again"
    else:
        yield from check_files(below)


def check_books(folder: Path, parts: Sequence[tuple[dict[str, Any], np.ndarray]]) -> Iterator[str]:
    """Where ledgers, rejected inputs and samples disagree, a line each.

    `parts`: manifest and IDS of all samples, of the folder and then of its holdout if it has one.
    """
    manifest = parts[0][0]
    ids = np.concatenate([found for _, found in parts])
    try:
        yield from _check_ledgers(folder, manifest, read_lines(folder / REJECTED), ids)
        yield from _check_near(folder, ids)
    except (OSError, ValueError, KeyError, TypeError):
        yield f"{folder / REJECTED}, {NEAR} or the ledgers of {MANIFEST} cannot be read: copy them, or pack again"
    for said, found in parts:
        counts = {"samples": len(found)}
        counts |= {f"{name}s": len(np.unique(found[name])) for name in ("radiograph", "patient")}
        if any(said["statistics"][name] != count for name, count in counts.items()):
            yield f"the statistics in {folder / MANIFEST} are not those of its samples ({counts}): pack again"
    if len(parts) == 2 and len(shared := np.intersect1d(parts[0][1]["patient"], parts[1][1]["patient"])):
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
