"""What a data set of ten million samples costs a run, beside one of ten thousand in the same run.

    python benchmarks/scale.py --out scale

One real shard of 1,000 tooth-sized crops is written; data sets of 10 and of 10,000 shards are folders of hard links to
it with their own manifest and index, so every image that is read is a real one. Each set is opened by a fresh process.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from data_shards.shards.manifest import INDEX, MANIFEST, stated
from data_shards.shards.shard_set import ShardSet
from data_shards.shards.stream import Stream
from data_shards.shards.tar_index import index_shards
from pretrain.config.schema import Config, DataConfig
from pretrain.data.multicrop_loader import view_batches

SAMPLES, BATCH, STEPS, WORKERS = 1000, 64, 40, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs=2, default=[10, 10_000], help="of the small set and of the large")
    parser.add_argument("--out", type=Path, default=Path("scale"), help="folder for the data; must not exist")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.measure)))
        return
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists; give another --out")
    arguments.out.mkdir(parents=True)
    shard = arguments.out / "real.tar"
    write_shard(shard)
    columns = []
    for count in arguments.shards:
        folder = arguments.out / f"{count}-shards"
        link_set(folder, shard, count)
        printed = subprocess.run(
            [sys.executable, __file__, "--measure", str(folder)], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        columns.append(json.loads(printed.splitlines()[-1]))
    heads = [f"{count:,} shards, {count * SAMPLES:,} samples" for count in arguments.shards]
    print(f"\n| | {' | '.join(heads)} |\n|---|---|---|")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name]:.4g}' for column in columns)} |")


def write_shard(path: Path) -> None:
    """A shard of crops of the size and smoothness of teeth in panoramic radiographs."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(SAMPLES):
            noise = rng.normal(128, 25, (110 + i % 40, 60 + i % 20)).clip(0, 255)
            image = cv2.GaussianBlur(noise.astype(np.uint8), (0, 0), 1)
            for name, content in ((f"{i}.png", cv2.imencode(".png", image)[1].tobytes()), (f"{i}.json", b"{}")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def link_set(folder: Path, shard: Path, count: int) -> None:
    folder.mkdir()
    one, digest = index_shards([shard]), stated(shard)["sha256"]
    index = np.tile(one, count)
    index["shard"] = np.repeat(np.arange(count), len(one))
    np.save(folder / INDEX, index)
    shards = []
    for number in range(count):
        name = f"shard-{number:06d}.tar"
        os.link(shard, folder / name)
        shards.append({"name": name, "bytes": shard.stat().st_size, "samples": len(one), "sha256": digest})
    manifest = {"shards": shards, "index": {"name": INDEX, "sha256": stated(folder / INDEX)["sha256"]}}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def measured(folder: Path) -> dict[str, Any]:
    process = psutil.Process()
    before = process.memory_full_info().uss
    began = time.perf_counter()
    shards = ShardSet(folder)
    opened = time.perf_counter() - began
    stream = Stream([shards], None, seed=0, group=8)
    began = time.perf_counter()
    stream.addresses(0, BATCH)
    first = time.perf_counter() - began
    row: dict[str, Any] = {
        "index, MB": (folder / INDEX).stat().st_size / 1e6,
        "manifest, MB": (folder / MANIFEST).stat().st_size / 1e6,
        "opening (every checksum of the index, every size), s": opened,
        "order of the first batch, ms": first * 1e3,
    }
    began = time.perf_counter()
    for step in range(2000):
        stream.addresses(step * BATCH, BATCH)
    row["order, ms per step of 64, over 2,000 steps"] = (time.perf_counter() - began) / 2000 * 1e3
    began = time.perf_counter()
    stream.addresses(10**9, BATCH)
    row["resume a billion samples later, ms"] = (time.perf_counter() - began) * 1e3
    row["memory of the training process for it, MB (unique)"] = (process.memory_full_info().uss - before) / 1e6
    config = Config(data=DataConfig(batch_size=BATCH, workers=WORKERS))
    batches = view_batches(config, stream, 0, STEPS + 10)
    for _ in range(10):
        next(batches)
    began = time.perf_counter()
    for _ in range(STEPS):
        next(batches)
    row["views, ms per step of 64, 2 workers"] = (time.perf_counter() - began) / STEPS * 1e3
    workers = process.children()
    row["memory of a data worker, MB (unique)"] = max(w.memory_full_info().uss for w in workers) / 1e6
    return row


if __name__ == "__main__":
    main()
