"""The end of a pack: which radiographs stay, whose they are, the books closed, the shard folders written."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.annotations.boxes import BoxPlan
from data_shards.errors import NothingNewError, PackError
from data_shards.ledger import Ledgers
from data_shards.pack.crop_job import Converted, Frame
from data_shards.pack.duplicates import KNOWN, Earlier, Patients, drop_duplicates, find_near
from data_shards.pack.resume_log import Chunk, Journal
from data_shards.progress import progress
from data_shards.pseudonyms import Key
from data_shards.shards.manifest import MANIFEST, NEAR, REJECTED, stated
from data_shards.shards.statistics import Tally
from data_shards.shards.writer import FORMAT, Piece, of_patient, write_index, write_manifest, write_shards
from data_shards.sources.inventory import Entry

NO_CROP = "none of its boxes gives a crop"
NO_USE = "its boxes are of radiographs that are not used"
UNUSED = "its radiograph is not used: "


@dataclass
class Settled:
    """What stays: radiographs in the order of their ids, and whose they are.

    `near` are the pairs that are one radiograph or nearly so, for `near.jsonl`; None where they were not sought.
    """

    frames: list[Frame]
    patients: Patients
    near: list[dict[str, Any]] | None


def settle(
    done: Sequence[Converted],
    plan: BoxPlan,
    earlier: Earlier,
    images: Sequence[Entry],
    within: int | None,
    drop_near: bool,
    ledgers: Ledgers,
) -> Settled:
    """Close the books: duplicates go, and what belongs to a rejected radiograph is rejected with it.

    Near duplicates (`within` so many bits; None: not sought) make two patients one, and with `drop_near` one of them
    goes.
    """
    frames = sorted((frame for one in done for frame in one.frames), key=lambda frame: frame.radiograph)
    for one in done:
        if one.reason:
            ledgers.reject("radiographs", one.radiograph, one.reason)
    for frame in frames:
        _enter(frame, ledgers)
    joined = drop_duplicates(_used(frames, ledgers), earlier, ledgers)
    if within is not None:
        joined += find_near(_used(frames, ledgers), earlier, within, drop_near, ledgers)
    patients = Patients(earlier)
    for line in joined:
        patients.join(*line["patients"])
    _close(done, plan, images, ledgers)
    joined.sort(key=lambda line: line["radiographs"])
    return Settled(_used(frames, ledgers), patients, joined if joined or within is not None else None)


def _enter(frame: Frame, ledgers: Ledgers) -> None:
    ledgers.see("radiographs", frame.radiograph)
    for id_ in frame.boxes:
        ledgers.see("boxes", id_)
    for id_, reason in frame.rejected:
        ledgers.reject("boxes", id_, reason)
    if frame.reason or not frame.samples:
        ledgers.reject("radiographs", frame.radiograph, frame.reason or NO_CROP)


def _used(frames: Sequence[Frame], ledgers: Ledgers) -> list[Frame]:
    return [frame for frame in frames if ledgers.is_used("radiographs", frame.radiograph)]


def _close(done: Sequence[Converted], plan: BoxPlan, images: Sequence[Entry], ledgers: Ledgers) -> None:
    """Reject what hangs on a rejected radiograph: its boxes, and its file where that has no other."""
    frames = {one.radiograph: one.frames for one in done}
    for image in images:
        whole = frames.get(image.radiograph, [])
        reasons = {frame.radiograph: ledgers.reason("radiographs", frame.radiograph) for frame in whole}
        reasons.setdefault(image.radiograph, ledgers.reason("radiographs", image.radiograph))
        boxes = {frame.radiograph: frame.boxes for frame in whole}
        boxes[image.radiograph] = [box.id for box in plan.boxes.get(image.radiograph, [])]
        for radiograph, why in reasons.items():
            for id_ in boxes[radiograph] if why else ():
                ledgers.reject("boxes", id_, UNUSED + why)
        if all(reasons.values()):
            ledgers.reject("files", image.file, reasons[image.radiograph])
    for file, ids in plan.files.items():
        if not any(ledgers.is_used("boxes", id_) for id_ in ids):
            unused = all((ledgers.reason("boxes", id_) or "").startswith(UNUSED) for id_ in ids)
            ledgers.reject("files", file, NO_USE if ids and unused else NO_CROP)


def write_parts(
    folder: Path,
    settled: Settled,
    chunks: Mapping[str, Chunk],
    journal: Journal,
    settings: dict[str, Any],
    shares: list[dict[str, Any]],
    key: Key,
    ledgers: Ledgers,
    quiet: bool = True,
) -> dict[str, Any]:
    """The shard folder, with its holdout in it as a shard folder of its own. Returns the manifest.

    The ledgers and `shares` (see `source_shares`) of the main manifest are the whole pack's. Raises PackError where a
    part would be empty.
    """
    share = settings["holdout"]
    held, kept = (
        [f for f in settled.frames if settled.patients.is_held_out(f.patient, share) is wanted]
        for wanted in (True, False)
    )
    if not settled.frames:
        raise _why_nothing(ledgers)
    known = all(settled.patients.is_known(f.patient) for f in settled.frames)  # nobody is left to be chosen
    patients = len({settled.patients.of(f.patient) for f in settled.frames})
    if known and not kept:
        raise PackError(
            f"all {patients} patients are held out in earlier packs, which leaves none to train on: pack these sources "
            "together with those of another month"
        )
    if (share or held) and not (held and kept) and not known:
        verb = "raise" if kept else "lower"
        raise PackError(
            f"a holdout of {share} leaves one side of {patients} patients empty: {verb} --holdout, or pack more"
        )
    write = partial(
        _write_part, settled=settled, chunks=chunks, journal=journal, settings=settings, key=key, quiet=quiet
    )
    held_manifest = write(folder / "holdout", held) if held else None
    manifest = write(folder, kept)
    statistics_held = held_manifest["statistics"] if held_manifest else {}
    manifest["holdout"] = {name: statistics_held.get(name, 0) for name in ("samples", "radiographs", "patients")}
    manifest["ledgers"] = ledgers.totals()
    manifest["reasons"] = {name: dict(sorted(counts.items())) for name, counts in ledgers.reasons().items()}
    manifest["sources"] = shares
    written = manifest["statistics"]["samples"] + manifest["holdout"]["samples"]
    assert written == manifest["ledgers"]["boxes"]["used"], "the shards do not hold the boxes that the ledger counts"
    if held_manifest is not None:
        (folder / "holdout" / REJECTED).touch()
        listed = stated(folder / "holdout" / REJECTED)
        own = {name: {"seen": n, "used": n, "rejected": 0} for name, n in _counts(held).items()}
        held_manifest.update(part="holdout", rejected=listed, ledgers=own, reasons={name: {} for name in own})
        write_manifest(folder / "holdout", held_manifest)
        manifest["holdout"]["sha256"] = stated(folder / "holdout" / MANIFEST)["sha256"]
    ledgers.write_rejected(folder / REJECTED)
    manifest["rejected"] = stated(folder / REJECTED)
    if settled.near is not None:
        (folder / NEAR).write_text("".join(json.dumps(line) + "\n" for line in settled.near), encoding="utf-8")
        manifest["near"] = stated(folder / NEAR)
    write_manifest(folder, manifest)
    return manifest


def _write_part(
    folder: Path,
    frames: Sequence[Frame],
    settled: Settled,
    chunks: Mapping[str, Chunk],
    journal: Journal,
    settings: dict[str, Any],
    key: Key,
    quiet: bool,
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)

    def members(frame: Frame) -> bytes:
        found, patient = journal.members(chunks[frame.radiograph]), settled.patients.of(frame.patient)
        return found if patient == frame.patient else of_patient(found, patient)

    bar = progress(frames, desc="writing", unit=" radiographs", disable=quiet)
    pieces = (Piece(frame.size, frame.samples, partial(members, frame)) for frame in bar)
    shards = write_shards(folder, pieces, int(settings["shard_mb"] * 1e6), settings["shard_samples"])
    index, listed = write_index(folder, shards)
    return {
        "format": FORMAT,
        "part": "main",
        "key": key.check(),
        "settings": settings,
        "statistics": tally(folder, shards, index, frames).statistics(),
        "index": listed,
        "shards": shards,
    }


def _counts(frames: Sequence[Frame]) -> dict[str, int]:
    files = len({frame.file for frame in frames})
    return {"files": files, "radiographs": len(frames), "boxes": sum(f.samples for f in frames)}


def _why_nothing(ledgers: Ledgers) -> PackError:
    totals, reasons = ledgers.totals(), ledgers.reasons()
    known = sum(count for reason, count in reasons["radiographs"].items() if reason.endswith(KNOWN))
    if known:
        others = [f"{n} x {why}" for why, n in reasons["radiographs"].most_common() if not why.endswith(KNOWN)]
        said = "; ".join([f"nothing new: {known} radiographs are in earlier packs", *others[:3]])
        return NothingNewError(f"{said}; no shards are made")
    name = "radiographs" if totals["radiographs"]["seen"] else "files"
    commonest = "; ".join(f"{count} x {reason}" for reason, count in reasons[name].most_common(3))
    boxes = ", ".join(f"{count} x {reason}" for reason, count in reasons["boxes"].most_common(1))
    of_boxes = (
        f"; of the boxes {boxes}" if boxes and not reasons["boxes"].most_common(1)[0][0].startswith(UNUSED) else ""
    )
    others = [f"{n} x {why}" for why, n in reasons["files"].most_common() if why not in reasons[name]]
    if others and not boxes and name == "radiographs":  # annotations that could not be gone through, say
        of_boxes = f"; of the files {others[0]}"
    return PackError(
        f"no {name[:-1]} of {totals[name]['seen']} could be used ({commonest or 'the sources are empty'}{of_boxes}): "
        "check them"
    )


def tally(folder: Path, shards: list[dict[str, Any]], index: np.ndarray, frames: Iterable[Frame]) -> Tally:
    """A folder's samples, counted as they are read back from its shards, and their pixels by the sums in `frames`."""
    counted = Tally()
    for number, shard in enumerate(shards):
        with (folder / shard["name"]).open("rb") as file:
            for row in index[index["shard"] == number]:
                counted.add(json.loads(os.pread(file.fileno(), int(row["meta_size"]), int(row["meta"]))))
    for frame in frames:
        counted.add_pixels(frame.bits, frame.count, frame.total, frame.squares)
    return counted
