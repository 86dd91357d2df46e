"""`python -m data_shards pack` beside the script that everyone writes first: crops and MB a second; and its memory.

    python benchmarks/pack.py speed ufba425.zip --pixel-aspect 1.767 --out pack
    python benchmarks/pack.py speed --out pack                     # phantoms, rendered first
    python benchmarks/pack.py memory --gb 0.1 1 4 --out pack       # archives that grow, made and removed on the way

The script (`plain_pack.py`) opens the zip, decodes with Pillow, cuts the same boxes and hands them to
`webdataset.ShardWriter`: no ids, no ledgers, no checks, one core. All are whole processes from start to exit and take
turns; on a machine that others use, the ratio of each round is what counts. MB are of the archive. Memory is the most
that a process and its children held, pages that they share counted once (PSS).
"""

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from data_shards.phantom.render import render_radiograph, write_archive
from data_shards.shards.manifest import read_manifest

HERE = Path(__file__).resolve().parent
SCALE = 5
"""What phantoms are enlarged by for `memory`: to some 1,600 x 1,200 pixels, as periapicals have."""


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds of a whole process from start to exit, and those of all cores in it."""
    began, used = time.perf_counter(), core_seconds()
    with started(command) as process:
        finish(process)
    return time.perf_counter() - began, core_seconds() - used


def most_memory(command: list[str]) -> float:
    """The most memory that a whole process and its children held, in MB.

    Not of a process that is timed: the kernel walks their page tables for each look, and they wait meanwhile.
    """
    peak, done = [0.0], threading.Event()
    with started(command) as process:
        watch = threading.Thread(target=watch_memory, args=(psutil.Process(process.pid), peak, done))
        watch.start()
        try:
            finish(process)
        finally:
            done.set()
            watch.join()
    return peak[0]


def started(command: list[str]) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


def finish(process: "subprocess.Popen[bytes]") -> None:
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"error: {' '.join(map(str, process.args))} failed:\n{said.decode(errors='replace')}")


def core_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def watch_memory(process: psutil.Process, peak: list[float], done: threading.Event) -> None:
    while not done.wait(0.1):
        try:
            family = [process, *process.children(recursive=True)]
            peak[0] = max(peak[0], sum(p.memory_full_info().pss for p in family) / 1e6)
        except psutil.Error:  # one of them has just ended
            continue


def packing(source: Path, out: Path, workers: int, pixel_aspect: float) -> list[str]:
    command = [sys.executable, "-m", "data_shards", "pack", str(source), "--out", str(out / "packed")]
    command += ["--workers", str(workers), "--key", str(out / "benchmark.key"), "--quiet", "true"]
    return command + (["--pixel-aspect", str(pixel_aspect)] if pixel_aspect != 1 else [])


def speed(source: Path, out: Path, pixel_aspect: float, rounds: int) -> dict[str, Any]:
    runs = {
        "plain script": [
            sys.executable,
            str(HERE / "plain_pack.py"),
            str(source),
            str(out / "plain"),
            str(pixel_aspect),
        ],
        "pack": packing(source, out, 1, pixel_aspect),
        "pack, 2 workers": packing(source, out, 2, pixel_aspect),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, command in runs.items():
            clear(out)
            took[name].append(timed(command))
    crops = read_manifest(out / "packed")["statistics"]["samples"]
    megabytes = source.stat().st_size / 1e6
    print(f"{source.name}: {megabytes:.1f} MB, {crops} crops, {rounds} rounds\n")
    print("| | s | crops / s | MB / s | times the script's speed (each round) | s of all cores | MB of memory |")
    print("|---|---|---|---|---|---|---|")
    told: dict[str, Any] = {"crops": crops, "MB": megabytes}
    for name, results in took.items():
        clear(out)
        most = most_memory(runs[name])
        seconds, cores = (statistics.median(r[i] for r in results) for i in (0, 1))
        ratios = sorted(plain[0] / own[0] for plain, own in zip(took["plain script"], results, strict=True))
        told[name] = {"seconds, of cores": results, "MB of memory": most, "ratios": ratios}
        times = f"{statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})"
        rates = f"{crops / seconds:.0f} | {megabytes / seconds:.1f}"
        print(f"| {name} | {seconds:.1f} | {rates} | {times} | {cores:.1f} | {most:.0f} |")
    clear(out)
    return told


def clear(out: Path) -> None:
    for folder in ("plain", "packed", ".packed.packing"):
        shutil.rmtree(out / folder, ignore_errors=True)


def memory(out: Path, sizes: list[float], workers: int) -> dict[str, Any]:
    told: dict[str, Any] = {}
    print("| archive | GB | files | MB of memory |\n|---|---|---|---|")
    for kind in ("zip", "tar"):
        for size in sizes:
            archive = out / f"grown.{kind}"
            count = write_grown(archive, size)
            clear(out)
            most = most_memory(packing(archive, out, workers, 1))
            told[f"{kind} {size}"] = {"files": count, "memory": most}
            print(f"| {kind} | {archive.stat().st_size / 1e9:.2f} | {count} | {most:.0f} |", flush=True)
            archive.unlink()
    clear(out)
    return told


def write_grown(path: Path, gigabytes: float) -> int:
    """An archive of about so many GB; each radiograph in it is another, by the noise in its corner."""
    films = [render_radiograph(0, patient) for patient in range(20)]
    images = [cv2.resize(film.image, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC) for film in films]
    count = max(1, round(gigabytes * 1e9 / np.mean([image.nbytes for image in images])))
    rows = ["image,x0,y0,x1,y1,fdi"]
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") if path.suffix == ".zip" else tarfile.open(path, "w") as archive:
        for number in range(count):
            film, image = films[number % len(films)], images[number % len(films)].copy()
            image[:8, :8] = rng.integers(0, 256, (8, 8))
            name = f"{number:06d}.pgm"
            add(archive, name, cv2.imencode(".pgm", image)[1].tobytes())
            for box, fdi in zip(film.boxes * SCALE, film.fdi, strict=True):
                rows.append(f"{name},{','.join(f'{v:.1f}' for v in box)},{fdi}")
        add(archive, "boxes.csv", "\n".join(rows).encode())
    return count


def add(archive: zipfile.ZipFile | tarfile.TarFile, name: str, content: bytes) -> None:
    if isinstance(archive, zipfile.ZipFile):
        archive.writestr(name, content)
    else:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    fast = kinds.add_parser("speed")
    fast.add_argument("source", nargs="?", type=Path, help="a zip with YOLO labels or a boxes.csv; else phantoms")
    fast.add_argument("--pixel-aspect", type=float, default=1.0)
    fast.add_argument("--rounds", type=int, default=5)
    fast.add_argument("--patients", type=int, default=400, help="phantoms to render where no source is given")
    large = kinds.add_parser("memory")
    large.add_argument("--gb", type=float, nargs="+", default=[0.1, 1, 4])
    large.add_argument("--workers", type=int, default=2)
    for kind in (fast, large):
        kind.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.kind == "memory":
        told = memory(args.out, args.gb, args.workers)
    else:
        source = args.source or args.out / "phantoms.zip"
        if not source.exists():
            write_archive(source, patients=args.patients, seed=0, workers=2)
        told = speed(source, args.out, args.pixel_aspect, args.rounds)
    (args.out / f"{args.kind}.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
