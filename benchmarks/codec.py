"""What a stored crop costs: bytes, time to make and to read it, and what is lost, by codec; and by its largest side.

    python benchmarks/codec.py --shards shards/ufba shards/phantom --out codec

Crops are taken evenly from each shard folder, at 8 bits as they are, and at 12 bits in 16 as detectors deliver:
the crop, smoothed, with noise of 12 levels of 4095 (deep crops of the shards are taken too). Reading is what the stream
does (`data_shards.shards.codec.gray_of`, by OpenCV), beside Pillow. Milliseconds are of the process's own time on one
core, the median of rounds in which the codecs take turns. Tables go to the terminal, every figure to OUT/codec.json.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from data_shards.shards.codec import gray_of
from data_shards.shards.shard_set import ShardSet

Encode = Callable[[np.ndarray], bytes]

LEVEL, FILTER, STRATEGY = cv2.IMWRITE_PNG_COMPRESSION, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_STRATEGY
HUFFMAN, RLE = cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY, cv2.IMWRITE_PNG_STRATEGY_RLE
SUB, UP, AVERAGE, PAETH = (getattr(cv2, f"IMWRITE_PNG_FILTER_{name}") for name in ("SUB", "UP", "AVG", "PAETH"))


def opencv(suffix: str, *settings: int) -> Encode:
    return lambda crop: cv2.imencode(suffix, crop, settings)[1].tobytes()


def pillow(name: str, **settings: Any) -> Encode:
    def encode(crop: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(crop).save(buffer, name, **settings)
        return buffer.getvalue()

    return encode


LOSSLESS: dict[str, Encode] = {
    "PNG 1 (level 1)": opencv(".png", LEVEL, 1),
    "PNG 0": opencv(".png", LEVEL, 0),
    "PNG 3": opencv(".png", LEVEL, 3),
    "PNG 6": opencv(".png", LEVEL, 6),
    "PNG 9": opencv(".png", LEVEL, 9),
    "PNG 1, up": opencv(".png", LEVEL, 1, FILTER, UP),
    "PNG 1, Paeth": opencv(".png", LEVEL, 1, FILTER, PAETH),
    "PNG Huffman only, sub": opencv(".png", LEVEL, 1, STRATEGY, HUFFMAN, FILTER, SUB),
    "PNG Huffman only, up": opencv(".png", LEVEL, 1, STRATEGY, HUFFMAN, FILTER, UP),
    "PNG Huffman only, average": opencv(".png", LEVEL, 1, STRATEGY, HUFFMAN, FILTER, AVERAGE),
    "PNG Huffman only, Paeth": opencv(".png", LEVEL, 1, STRATEGY, HUFFMAN, FILTER, PAETH),
    "PNG run lengths, up": opencv(".png", LEVEL, 1, STRATEGY, RLE, FILTER, UP),
    "PNG run lengths, Paeth": opencv(".png", LEVEL, 1, STRATEGY, RLE, FILTER, PAETH),
    "PNG 1, Pillow": pillow("PNG", compress_level=1),
    "PNG 6, Pillow": pillow("PNG", compress_level=6),
    "TIFF deflate, predictor": opencv(".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 8, cv2.IMWRITE_TIFF_PREDICTOR, 2),
    "JPEG 2000 lossless": pillow("JPEG2000", irreversible=False),
    "PGM (raw)": opencv(".pgm"),
}
LOSSY: dict[str, Encode] = {
    "WebP lossless": opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
    "WebP 95": opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 95),
    "WebP 90": opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 90),
    "JPEG 98": opencv(".jpg", cv2.IMWRITE_JPEG_QUALITY, 98),
    "JPEG 95": opencv(".jpg", cv2.IMWRITE_JPEG_QUALITY, 95),
    "JPEG 90": opencv(".jpg", cv2.IMWRITE_JPEG_QUALITY, 90),
    "AVIF 95": opencv(".avif", cv2.IMWRITE_AVIF_QUALITY, 95, cv2.IMWRITE_AVIF_SPEED, 8),
}
"""Codecs of 8 bits only; of WebP the first is lossless for gray, as the figures show."""
SIDES = (1280, 1024, 768, 640, 512, 384, 256)


def crops_of(folder: str, count: int) -> list[np.ndarray]:
    samples = ShardSet(folder)
    return [samples.image(int(i)) for i in np.unique(np.linspace(0, len(samples) - 1, count).astype(int))]


def deepened(crops: Sequence[np.ndarray]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    smooth = (cv2.GaussianBlur(crop.astype(np.float32), (0, 0), 1) * 16 for crop in crops)
    return [np.clip(s + rng.normal(0, 12, s.shape), 0, 4095).astype(np.uint16) for s in smooth]


def own_ms(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    began = time.process_time()
    for item in items:
        work(item)
    return (time.process_time() - began) / len(items) * 1e3


def from_pillow(raw: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(raw)) as image:
        return np.asarray(image)


def measured(codecs: dict[str, Encode], crops: Sequence[np.ndarray], rounds: int) -> dict[str, dict[str, Any]]:
    stored = {name: [encode(crop) for crop in crops] for name, encode in codecs.items()}
    times: dict[str, dict[str, list[float]]] = {n: {"encode": [], "decode": [], "pillow": []} for n in codecs}
    for _ in range(rounds):
        for name, encode in codecs.items():
            times[name]["encode"].append(own_ms(encode, crops))
            times[name]["decode"].append(own_ms(gray_of, stored[name]))
            times[name]["pillow"].append(own_ms(from_pillow, stored[name]))
    told = {}
    for name in codecs:
        errors = [np.abs(gray_of(raw).astype(int) - crop) for raw, crop in zip(stored[name], crops, strict=True)]
        squares = sum(float((e * e).sum()) for e in errors) / sum(e.size for e in errors)
        told[name] = {
            "bytes": statistics.mean(map(len, stored[name])),
            **{key: statistics.median(values) for key, values in times[name].items()},
            "max_error": max(int(e.max()) for e in errors),
            "psnr": 10 * np.log10(255**2 / squares) if squares else None,
        }
    return told


def show(title: str, crops: Sequence[np.ndarray], told: dict[str, dict[str, Any]]) -> None:
    height, width = np.median([crop.shape for crop in crops], axis=0)
    raw = statistics.mean(crop.nbytes for crop in crops)
    print(f"\n{title}: {len(crops)} crops, median {height:.0f} x {width:.0f}, {raw / 1e3:.1f} kB raw\n")
    print(
        "| codec | bytes / raw | encode ms | decode ms | with Pillow | largest error, PSNR |\n|---|---|---|---|---|---|"
    )
    for name, row in told.items():
        loss = f"{row['max_error']}, {row['psnr']:.1f} dB" if row["psnr"] else "none"
        spent = " | ".join(f"{row[key]:.3f}" for key in ("encode", "decode", "pillow"))
        print(f"| {name} | {row['bytes'] / raw:.3f} | {spent} | {loss} |")


def by_side(crops: Sequence[np.ndarray], codecs: dict[str, Encode], rounds: int) -> dict[str, Any]:
    """The same crops, enlarged with noise as a periapical's are large, then stored with a largest side."""
    rng = np.random.default_rng(0)
    told: dict[str, Any] = {}
    print(
        "\n| largest side | "
        + " | ".join(f"{name}: kB, decode ms" for name in codecs)
        + " |\n|"
        + "---|" * (1 + len(codecs))
    )
    for side in SIDES:
        sized = [cv2.resize(c, None, fx=side / max(c.shape), fy=side / max(c.shape)) for c in crops]
        noisy = [np.clip(c + rng.normal(0, 2, c.shape), 0, 255).astype(np.uint8) for c in sized]
        told[str(side)] = rows = measured(codecs, noisy, rounds)
        print(f"| {side} | " + " | ".join(f"{r['bytes'] / 1e3:.1f}, {r['decode']:.2f}" for r in rows.values()) + " |")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=200, help="of each shard folder")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    told: dict[str, Any] = {}
    for folder in args.shards:
        crops = crops_of(folder, args.crops)
        sets = {
            "8 bits": [c for c in crops if c.dtype == np.uint8],
            "16 bits": [c for c in crops if c.dtype == np.uint16],
        }
        sets["12 bits, made"] = deepened(sets["8 bits"])
        for kind, chosen in sets.items():
            if chosen:
                codecs = LOSSLESS | LOSSY if kind == "8 bits" else LOSSLESS
                title = f"{Path(folder).name}, {kind}"
                told[title] = measured(codecs, chosen, args.rounds)
                show(title, chosen, told[title])
    names = ("PNG 1 (level 1)", "PNG run lengths, up", "JPEG 95")
    told["by side"] = by_side(crops_of(args.shards[0], 60), {n: (LOSSLESS | LOSSY)[n] for n in names}, args.rounds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "codec.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
