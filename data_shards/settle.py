"""The end of a pack: which radiographs stay, the books closed, the shard folders written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards.boxes import BoxPlan
from data_shards.convert import Converted
from data_shards.errors import PackError
from data_shards.folder import FORMAT, Chunk, statistics, write_index, write_manifest, write_shards
from data_shards.ids import Key
from data_shards.inventory import Entry
from data_shards.ledger import Ledgers
from data_shards.manifest import MANIFEST, REJECTED, stated


def held_out(patient: str, share: float) -> bool:
    """Whether a patient belongs to the holdout: by the id, a keyed hash, so the same in every pack of one key."""
    return int(patient, 16) < share * 16 ** len(patient)


def settle(
    done: Sequence[Converted], plan: BoxPlan, earlier: dict[str, str], images: Sequence[Entry], ledgers: Ledgers
) -> None:
    """Close the books: duplicates go, and what belongs to a rejected radiograph is rejected with it.

    Of radiographs with the same pixels the one in `earlier` stays (fingerprint to id), else the one of the lowest id.
    """
    first = dict(earlier)
    for converted in done:
        for id_, reason in converted.rejected:
            ledgers.reject("boxes", id_, reason)
        if converted.reason:
            ledgers.reject("radiographs", converted.radiograph, converted.reason)
        elif not converted.samples:
            ledgers.reject("radiographs", converted.radiograph, "none of its boxes gives a crop")
        elif converted.pixels in first:
            where = "an earlier pack" if converted.pixels in earlier else "this pack"
            reason = f"a duplicate: the same pixels are in {where}"
            ledgers.reject("radiographs", converted.radiograph, reason, twin=first[converted.pixels])
        else:
            first[converted.pixels] = converted.radiograph
    for image in images:
        if why := ledgers.reason("radiographs", image.radiograph):
            ledgers.reject("files", image.file, why)
            for box in plan.boxes.get(image.radiograph, []):
                ledgers.reject("boxes", box.id, f"its radiograph is not used: {why}")
    for file, boxes in plan.files.items():
        if not any(ledgers.is_used("boxes", id_) for id_ in boxes):
            ledgers.reject("files", file, "none of its boxes gives a crop")


def write_parts(
    folder: Path,
    done: Sequence[Converted],
    chunks: dict[str, Chunk],
    spool: Path,
    settings: dict[str, Any],
    key: Key,
    ledgers: Ledgers,
    shares: list[dict[str, Any]],
) -> dict[str, Any]:
    """The shard folder, with its holdout in it as a shard folder of its own. Returns the manifest.

    The ledgers and `shares` (see `source_shares`) of the main manifest are the whole pack's. Raises PackError where a
    part would be empty.
    """
    used = [c for c in done if ledgers.is_used("radiographs", c.radiograph)]
    share = settings["holdout"]
    held = [c for c in used if held_out(c.patient, share)]
    kept = [c for c in used if not held_out(c.patient, share)]
    if not used:
        raise PackError(_why_nothing(ledgers))
    if share and not (held and kept):
        patients = len({c.patient for c in used})
        verb = "raise" if kept else "lower"
        raise PackError(
            f"a holdout of {share} leaves one side of {patients} patients empty: {verb} --holdout, or pack more"
        )
    own = {name: {"seen": n, "used": n, "rejected": 0} for name, n in _counts(held).items()}
    held_manifest = _write_part(folder / "holdout", held, chunks, spool, settings, key) if held else None
    manifest = _write_part(folder, kept, chunks, spool, settings, key)
    statistics_held = held_manifest["statistics"] if held_manifest else {}
    manifest["holdout"] = {name: statistics_held.get(name, 0) for name in ("samples", "radiographs", "patients")}
    manifest["sources"] = shares
    manifest["ledgers"] = ledgers.totals()
    manifest["reasons"] = {name: dict(sorted(counts.items())) for name, counts in ledgers.reasons().items()}
    written = manifest["statistics"]["samples"] + manifest["holdout"]["samples"]
    assert written == manifest["ledgers"]["boxes"]["used"], "the shards do not hold the boxes that the ledger counts"
    if held_manifest is not None:
        (folder / "holdout" / REJECTED).touch()
        listed = stated(folder / "holdout" / REJECTED)
        held_manifest.update(part="holdout", rejected=listed, ledgers=own, reasons={name: {} for name in own})
        write_manifest(folder / "holdout", held_manifest)
        manifest["holdout"]["sha256"] = stated(folder / "holdout" / MANIFEST)["sha256"]
    ledgers.write_rejected(folder / REJECTED)
    manifest["rejected"] = stated(folder / REJECTED)
    write_manifest(folder, manifest)
    return manifest


def _write_part(
    folder: Path,
    members: Sequence[Converted],
    chunks: dict[str, Chunk],
    spool: Path,
    settings: dict[str, Any],
    key: Key,
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    limits = int(settings["shard_mb"] * 1e6), settings["shard_samples"]
    shards = write_shards(folder, spool, (chunks[c.radiograph] for c in members), *limits)
    count, total, squares = (sum(getattr(c, name) for c in members) for name in ("count", "total", "squares"))
    return {
        "format": FORMAT,
        "part": "main",
        "key": key.check(),
        "settings": settings,
        "statistics": statistics(folder, count, total, squares),
        "index": write_index(folder, shards),
        "shards": shards,
    }


def _counts(members: Sequence[Converted]) -> dict[str, int]:
    return {"files": len(members), "radiographs": len(members), "boxes": sum(c.samples for c in members)}


def _why_nothing(ledgers: Ledgers) -> str:
    totals, reasons = ledgers.totals(), ledgers.reasons()
    name = "radiographs" if totals["radiographs"]["seen"] else "files"
    commonest = "; ".join(f"{count} x {reason}" for reason, count in reasons[name].most_common(3))
    return (
        f"no {name[:-1]} of {totals[name]['seen']} could be used ({commonest or 'the sources are empty'}): check them"
    )
