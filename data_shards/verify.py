"""Whether a shard folder is what its manifest says, to the byte."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_shards.errors import ShardError
from data_shards.index import index_shards
from data_shards.ledger import LEDGERS
from data_shards.shard_set import INDEX, MANIFEST, REJECTED, ShardSet, read_manifest


def verify(folder: Path, quiet: bool = False) -> list[str]:
    """Everything that is wrong with a shard folder and its holdout, a line each; empty where all is well.

    Checksums of every file, ledgers, index against the tars' headers, shards that are missing or not the manifest's,
    and every sample: its image decodes, its size and id agree with its JSON. Foreign shards have only the last.
    """
    problems = list(_of_files(folder, quiet)) if (folder / MANIFEST).is_file() else []
    if not problems:
        try:
            problems += _of_samples(ShardSet(folder), quiet)
        except ShardError as error:
            problems.append(str(error))
    if (folder / "holdout").is_dir():
        problems += verify(folder / "holdout", quiet)
        problems += _of_patients(folder) if not problems else []
    return problems


def _of_files(folder: Path, quiet: bool) -> Iterator[str]:
    try:
        manifest = read_manifest(folder)
    except ShardError as error:
        yield str(error)
        return
    stated = {s["name"]: s for s in manifest["shards"]}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in stated:
            yield f"{path} is not one of the shards that {MANIFEST} lists: remove it, or pack it into another folder"
    for name, shard in tqdm(stated.items(), desc="checksums", unit=" shards", disable=quiet):
        path = folder / name
        if not path.is_file():
            yield f"the shard {path} is missing: copy it, or pack again"
        elif path.stat().st_size != shard["bytes"]:
            yield f"the shard {path} has {path.stat().st_size} bytes, not {shard['bytes']}: copy or pack it again"
        elif checksum(path) != shard["sha256"]:
            yield f"the shard {path} is damaged (its checksum differs): copy or pack it again"
    if not (folder / INDEX).is_file() or checksum(folder / INDEX) != manifest["index"]["sha256"]:
        yield f"{folder / INDEX} is missing or damaged: copy or pack it again"
    yield from _of_ledgers(folder, manifest)


def _of_ledgers(folder: Path, manifest: dict) -> Iterator[str]:
    try:
        lines = (folder / REJECTED).read_text(encoding="utf-8").splitlines()
        rejected = Counter(json.loads(line)["ledger"] for line in lines)
        for name in LEDGERS:
            ledger = manifest["ledgers"][name]
            if ledger["seen"] != ledger["used"] + ledger["rejected"]:
                yield f"the ledger of {name} in {folder / MANIFEST} does not balance: pack again"
            if rejected[name] != ledger["rejected"]:
                yield f"{folder / REJECTED} lists {rejected[name]} {name}, not {ledger['rejected']}: copy it again"
        held = manifest.get("holdout", {}).get("samples", 0)
        if manifest["ledgers"]["boxes"]["used"] != manifest["statistics"]["samples"] + held:
            yield f"{folder / MANIFEST} counts other boxes than samples: pack again"
    except (OSError, ValueError, KeyError, TypeError):
        yield f"{folder / REJECTED} or the ledgers of {MANIFEST} cannot be read: copy them, or pack again"


def _of_samples(samples: ShardSet, quiet: bool) -> Iterator[str]:
    if samples.manifest and not np.array_equal(index_shards(samples.shards), samples.index):
        yield f"the index of {samples.path} does not fit its shards: pack again"
        return
    seen: set[str] = set()
    for i in tqdm(range(len(samples)), desc="samples", unit=" samples", disable=quiet):
        try:
            pixels, meta, key = samples.image(i), samples.meta(i), samples.key(i)
        except ShardError as error:
            yield str(error)
            continue
        if key in seen:
            yield f"sample {key} stands twice in {samples.path}: pack again"
        seen.add(key)
        if samples.manifest and (meta.get("id") != key or [meta.get("height"), meta.get("width")] != [*pixels.shape]):
            yield f"sample {key} in {samples.path} and its JSON disagree: pack again"


def _of_patients(folder: Path) -> Iterator[str]:
    parts = [ShardSet(folder), ShardSet(folder / "holdout")]
    patients = [{part.meta(i).get("patient") for i in range(len(part))} for part in parts]
    if shared := patients[0] & patients[1]:
        yield f"{len(shared)} patients are both in {folder} and in its holdout: pack again"


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
