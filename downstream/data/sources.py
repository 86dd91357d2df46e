"""What `--shards` and `--query` may name beside shards: folders of classes, tables with images, archives of these.

They are packed into OUT/packed by the code of `python -m data_shards pack`, so a crop is decoded in one way only,
whatever it came in.
"""

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data_shards.annotations.labels import OF_TEETH
from data_shards.errors import PackError, ShardError
from data_shards.inspect.summary_text import ledger_lines
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.pseudonyms import Key, load_key
from data_shards.shards.shard_set import MANIFEST, ShardSet, read_manifest
from data_shards.shards.writer import FORMAT
from downstream.config import CropsConfig, DownstreamError

C = TypeVar("C", bound=CropsConfig)
TABLES = (".csv", ".tsv")


def packed(config: C, first: bool = True) -> C:
    """`config` with shards in the place of everything else that its `--shards` and `--query` name.

    Of several processes the `first` packs and the others wait for it. Raises DownstreamError for what gives no crops.
    """
    query: list[str] = getattr(config, "query", None) or []
    raw = [path for path in (*config.shards, *query) if not is_shards(path)]
    if not raw:
        if config.patient is not None:
            raise DownstreamError(
                "--patient is for images that are packed here; shards say whose each crop is: leave it"
            )
        return config
    named: dict[str, Path] = {}
    for place in map(Path, () if config.patient else raw):
        place = place.parent if place.suffix.lower() in TABLES else place
        name = place.resolve().name
        if named.setdefault(name, place.resolve()) != place.resolve():
            raise DownstreamError(
                f"{named[name]} and {place} have one name, and without --patient whose an image is goes by names: "
                "rename one, or give --patient"
            )
    labels: Sequence[str] = getattr(config, "label", ())
    asked = [labels] if isinstance(labels, str) else list(labels)
    options: dict[str, Any] = {
        # Where labels are wanted, folders are the last place to look for them.
        "boxes": "labelled" if asked else "auto",
        "labels": [label for label in asked if label not in OF_TEETH],
        "workers": max(1, config.workers),
    }
    out = Path(config.out)
    changed: dict[str, Any] = {"shards": as_shards(config.shards, out, config.patient, first, **options)}
    if query:
        changed["query"] = as_shards(query, out, config.patient, first, **options)
    return dataclasses.replace(config, **changed)


def as_shards(paths: Sequence[str], out: Path, patient: str | None, first: bool = True, **options: Any) -> list[str]:
    """Shard folders for `paths`: shards as they are, all else packed into `out`/packed under an id of its content.

    What an earlier command packed there is used again. The user's own key makes the ids, for all packs alike, so that
    a patient in two of them is found. `options` are those of PackConfig. Raises DownstreamError.
    """
    loose = [path for path in paths if not is_shards(path)]
    tables = [path for path in loose if Path(path).suffix.lower() in TABLES and Path(path).is_file()]
    together = bool(tables) and len(tables) < len(loose)  # a table named beside its images
    for place in map(Path, loose):  # before a key is made or anything is listed
        if not place.exists() or next(_state(place, out.resolve()), None) is None:
            raise DownstreamError(f"nothing to read at {place}: name shards, a folder, a table or an archive")
    found = []
    try:
        key, made = load_key(None)
        if made:
            print(f"made a new key for ids, {made}; keep it: with another, patients get other ids")
        for path in paths:
            if path not in loose:
                found.append(path)
                continue
            sources, boxes = [path], options.get("boxes", "auto")
            if together:
                if path != loose[0]:
                    continue
                sources = loose
            elif path in tables:  # its images lie beside or below it
                sources, boxes = [str(Path(path).parent)], path
            id_ = _content_id(sources, boxes, out, patient, options.get("labels", ()), key)
            settings = PackConfig(sources, out / "packed" / id_, **{**options, "boxes": boxes}, patient=patient)
            _pack_once(settings, first)
            found.append(str(settings.out))
    except PackError as error:
        of_pack = "--boxes" in str(error) or "--masks" in str(error)
        hint = " (Options of `python -m data_shards pack`: pack it first, and name the shards here.)" if of_pack else ""
        raise DownstreamError(f"{error}{hint}") from None
    return found


def is_shards(path: str) -> bool:
    """Whether `path` is read by ShardSet as it is: a shard folder, a folder with tars at its top, a URL, or one shard.

    A tar may be either. A shard carries its labels as <key>.json beside <key>.png; where no sample has JSON, only
    folders or a table within can say what its images are, so it is an archive.
    """
    place = Path(path)
    if "://" in path or (place / MANIFEST).is_file():
        return True
    if place.is_dir():
        return any(place.glob("*.tar"))
    if not place.is_file() or place.suffix.lower() in TABLES:
        return False
    try:
        return bool((ShardSet(place).index["meta_size"] > 0).any())
    except ShardError:  # no tar, a compressed one, or one without images at its top
        return False


def _pack_once(settings: PackConfig, first: bool) -> None:
    manifest_file = Path(settings.out) / MANIFEST
    while not first and not manifest_file.exists():  # where the first process fails or dies, the watchdog ends this one
        time.sleep(0.2)
    if not first:
        return
    names = ", ".join(map(str, settings.sources))
    if manifest_file.exists():
        print(f"{names}: packed before in {settings.out}")
        manifest = read_manifest(Path(settings.out))
    else:
        print(f"{names}: packing into {settings.out}")
        manifest = pack(settings)
    print("\n".join(ledger_lines(manifest)))
    if settings.patient is None:
        print("warning: without --patient every image is a patient, so no score here is known to be of new patients")


def _content_id(
    sources: Sequence[str], boxes: str, out: Path, patient: str | None, labels: Sequence[str], key: Key
) -> str:
    """Keyed, so that nobody can try names out on it: from paths, sizes, times and all settings that shape the pack."""
    told = [str(FORMAT), boxes, patient or "", *labels]
    for source in map(Path, sources):
        told.append(str(source.resolve()))
        told += _state(source, out.resolve())
    return key.id("pack", *told)


def _state(source: Path, out: Path) -> Iterator[str]:
    """Name, size and time of every file at `source`, but not of `out`, which this command changes itself."""
    if source.is_file():
        yield _stated(source, source.parent)
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if (Path(folder) / name).resolve() != out)
        for name in sorted(files):
            yield _stated(Path(folder) / name, source)


def _stated(file: Path, source: Path) -> str:
    found = file.lstat()
    return f"{file.relative_to(source)} {found.st_size} {found.st_mtime_ns}"
