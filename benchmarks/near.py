"""How far copies of a radiograph are from it by the perceptual hash, and strangers from one another; and the search.

    python benchmarks/near.py ufba425.zip --out near

Every image of the source is altered in the ways of COPIES and compared with itself, by our hash and by the usual 64-bit
DCT hash. All pairs of images are the strangers; those of one patient show at the top of the list. The search
is timed on a million hashes of coin tosses and on a million that depend on one another as the images' do. Tables go to
the terminal, all distances to OUT/near.json.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from data_shards.decode.radiograph import RadiographError, decode
from data_shards.pack.perceptual_hash import BITS, WITHIN, near_pairs, perceptual_hash
from data_shards.sources.source import open_sources

Change = Callable[[np.ndarray], np.ndarray]


def jpeg(quality: int) -> Change:
    def change(image: np.ndarray) -> np.ndarray:
        return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)

    return change


def scaled(factor: float) -> Change:
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return lambda image: cv2.resize(image, None, fx=factor, fy=factor, interpolation=method)


def windowed(percent: float) -> Change:
    def change(image: np.ndarray) -> np.ndarray:
        low, high = np.percentile(image, [percent, 100 - percent])
        return (np.clip((image - low) / max(high - low, 1), 0, 1) * 255).astype(np.uint8)

    return change


def gamma(exponent: float) -> Change:
    return lambda image: (255 * (image / 255) ** exponent).astype(np.uint8)


def trimmed(left: float, top: float, right: float, bottom: float) -> Change:
    def change(image: np.ndarray) -> np.ndarray:
        height, width = image.shape
        rows = slice(round(height * top), height - round(height * bottom))
        return image[rows, round(width * left) : width - round(width * right)]

    return change


def padded(share: float, value: int) -> Change:
    def change(image: np.ndarray) -> np.ndarray:
        by = round(share * image.shape[0])
        return cv2.copyMakeBorder(image, by, by, by, by, cv2.BORDER_CONSTANT, value=value)

    return change


def twelve_bits(image: np.ndarray) -> np.ndarray:
    return image.astype(np.uint16) * 16 + np.random.default_rng(0).integers(0, 16, image.shape).astype(np.uint16)


def lettered(image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    return cv2.putText(image.copy(), "R  12 34", (width // 50, height // 12), 0, height / 900, 255, 2)


def rotated(image: np.ndarray) -> np.ndarray:
    height, width = image.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 1, 1)
    return cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)


def noisy(image: np.ndarray) -> np.ndarray:
    return np.clip(image + np.random.default_rng(0).normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def sharpened(image: np.ndarray) -> np.ndarray:
    return cv2.addWeighted(image, 2, cv2.GaussianBlur(image, (0, 0), 2), -1, 0)


def small_trimmed_brighter(image: np.ndarray) -> np.ndarray:
    return jpeg(60)(gamma(0.8)(scaled(0.6)(trimmed(0.01, 0.01, 0.01, 0.01)(image))))


COPIES: dict[str, Change] = {
    "JPEG quality 50": jpeg(50),
    "JPEG quality 20": jpeg(20),
    "scaled by 0.25": scaled(0.25),
    "scaled by 0.5": scaled(0.5),
    "scaled by 0.75": scaled(0.75),
    "scaled by 1.3": scaled(1.3),
    "window without the outer 1 %": windowed(1),
    "window without the outer 5 %": windowed(5),
    "gamma 0.6": gamma(0.6),
    "gamma 1.6": gamma(1.6),
    "12 bits": twelve_bits,
    "noise, sigma 8 of 255": noisy,
    "sharpened": sharpened,
    "CLAHE, clip limit 2": cv2.createCLAHE(2, (8, 8)).apply,
    "text in a corner": lettered,
    "turned by 1 degree": rotated,
    "black padding, 8 %": padded(0.08, 0),
    "white padding, 3 %": padded(0.03, 255),
    "trimmed by 1 % on each side": trimmed(0.01, 0.01, 0.01, 0.01),
    "the same, scaled by 0.6, gamma 0.8, JPEG 60": small_trimmed_brighter,
    "trimmed by 2 % on each side": trimmed(0.02, 0.02, 0.02, 0.02),
    "trimmed by 3 % on each side": trimmed(0.03, 0.03, 0.03, 0.03),
    "trimmed by 3 % below": trimmed(0, 0, 0, 0.03),
    "trimmed by 3 % on the left": trimmed(0.03, 0, 0, 0),
    "mirrored": lambda image: image[:, ::-1],
    "inverted": lambda image: 255 - image,
}


def usual_hash(image: np.ndarray) -> str:
    """The 64-bit DCT hash in common use (32 x 32, the 8 x 8 lowest frequencies, above their median or not)."""
    low = cv2.dct(cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32))[:8, :8]
    return np.packbits(low > np.median(low)).tobytes().hex()


def radiographs(source: str) -> list[np.ndarray]:
    images = []
    for member in open_sources([source])[0].members():
        try:
            images.append(decode(member.read()).pixels)
        except RadiographError:
            continue
    return images


def nearest(one: str, other: str, digits: int) -> int:
    """Bits between two hashes, each of which may have two parts."""
    parts = ([int(text[i : i + digits], 16) for i in range(0, len(text), digits)] for text in (one, other))
    firsts, seconds = parts
    return min((a ^ b).bit_count() for a in firsts for b in seconds)


def strangers(hashes: list[str], digits: int) -> np.ndarray:
    pairs = ((i, j) for i in range(len(hashes)) for j in range(i))
    return np.sort([nearest(hashes[i], hashes[j], digits) for i, j in pairs])


def table_of_copies(images: list[np.ndarray]) -> dict[str, dict[str, list[int]]]:
    ours, usual = [perceptual_hash(i) for i in images], [usual_hash(i) for i in images]
    told: dict[str, dict[str, list[int]]] = {}
    print(f"| copy | bits of {BITS}: median, 99 %, most | within {WITHIN} | of the usual 64 |\n|---|---|---|---|")
    for name, change in COPIES.items():
        copies = [change(image) for image in images]
        a = np.array([nearest(h, perceptual_hash(c), BITS // 4) for h, c in zip(ours, copies, strict=True)])
        b = np.array([nearest(h, usual_hash(c), 16) for h, c in zip(usual, copies, strict=True)])
        told[name] = {"ours": a.tolist(), "usual": b.tolist()}
        print(f"| {name} | {figures(a)} | {np.mean(a <= WITHIN):.1%} | {figures(b)} |")
    a, b = strangers(ours, BITS // 4), strangers(usual, 16)
    told["strangers"] = {"ours": a.tolist(), "usual": b.tolist()}
    print(f"\n{len(a)} pairs of images: nearest {a[:6].tolist()} of {BITS} bits, {b[:6].tolist()} of the usual 64")
    print("| | nearest of 1,000 | nearest of 100 | median |\n|---|---|---|---|")
    for name, d in (("ours", a), ("usual", b)):
        print(f"| {name} | {d[len(d) // 1000]} | {d[len(d) // 100]} | {int(np.median(d))} |")
    print(f"usual: {np.mean(b <= 8):.1e} of the pairs are within 8, {np.mean(b <= 6):.1e} within 6")
    line, parabola = share_within(a, 1), share_within(a, 2)
    print(f"ours: {line:.0e} of the pairs would be within {WITHIN} by a line, {parabola:.0e} by a parabola")
    print("near pairs in the source:", [(d, i, j) for i, j, d in near_pairs(ours, 48)])
    return told


def figures(distances: np.ndarray) -> str:
    return f"{np.median(distances):.0f}, {np.percentile(distances, 99):.0f}, {distances.max()}"


def share_within(distances: np.ndarray, degree: int) -> float:
    """The share of strangers within WITHIN by a polynomial through the logarithm of their tail, from 1 in 100 on."""
    low, high = distances[max(3, len(distances) // 30000)], distances[len(distances) // 100]
    x = np.arange(low, high + 1)
    tail = np.polyfit(x, [np.log10(np.mean(distances <= k)) for k in x], degree)
    return float(10 ** np.polyval(tail, WITHIN))


def alike(images: list[np.ndarray], count: int) -> list[str]:
    """Hashes whose bits hang together as those of the images: signs of Gaussians with the bits' correlation."""
    whole = [bytes.fromhex(perceptual_hash(image)[: BITS // 4]) for image in images]
    bits = np.unpackbits(np.array([list(h) for h in whole], np.uint8), axis=1) * 2.0 - 1
    mean = bits.mean(axis=0)
    rng = np.random.default_rng(0)
    hashes: list[str] = []
    for _ in range(0, count, 10_000):
        draws = mean + rng.normal(size=(10_000, len(bits))) @ (bits - mean) / len(bits) ** 0.5
        hashes += [row.tobytes().hex() for row in np.packbits(draws > 0, axis=1)]
    return hashes[:count]


def most_memory() -> float:
    """This process's largest resident size so far, MB. `ru_maxrss` would count the parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def timed(hashes: list[str]) -> tuple[int, float, float]:
    """Pairs found, seconds of one core, and MB beyond what was held before."""
    before = most_memory()
    began = time.process_time()
    found = len(near_pairs(hashes))
    return found, time.process_time() - began, most_memory() - before


def table_of_search(images: list[np.ndarray]) -> None:
    print("\n| hashes | pairs | seconds of one core | MB |\n|---|---|---|---|")
    for count in (10_000, 100_000, 1_000_000):
        rng = np.random.default_rng(count)
        for name, hashes in (
            ("coin tosses", [rng.bytes(BITS // 8).hex() for _ in range(count)]),
            ("as panoramics", alike(images, count)),
        ):
            with multiprocessing.get_context("spawn").Pool(1) as process:  # its own, so that its peak is the search's
                found, seconds, megabytes = process.apply(timed, (hashes,))
            print(f"| {count:,} {name} | {found} | {seconds:.1f} | {megabytes:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="archive or folder of radiographs of different patients")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    images = radiographs(args.source)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "near.json").write_text(json.dumps(table_of_copies(images)))
    table_of_search(images)


if __name__ == "__main__":
    main()
