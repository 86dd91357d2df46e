"""Milliseconds a sample for the multi-crop views of `ViewConfig()` on one core, beside other ways of making such views.

    python benchmarks/augment_speed.py --shards shards/ufba --out augment-speed

In one run, taking turns in rounds on the same crops (phantoms, and one set for each of --shards): ours; the recipe as a
chain of stock albumentations transforms; lightly-train's DINO transform, which is AGPL and so runs in a virtual
environment of its own and answers over a pipe; and one bare warp a view. Then, from the FLOPs of a step, the cores that
feed one H100. OUT/speed.json holds every round; OUT keeps phantoms and environment for the next run.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from augment_peer import peer_process
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from augment import MultiCrop, ViewConfig
from data_shards.shards.shard_set import ShardSet
from pretrain.config.released_backbones import RELEASED
from pretrain.config.schema import Config, DataConfig
from pretrain.data.shard_sets import phantom_shards
from pretrain.models.backbones import build_backbone

H100_PEAK = 989e12  # dense bf16 FLOP/s of the SXM board, from its data sheet
UTILISATION = {
    0.4: "what well-tuned training of large transformers reaches; an upper demand",
    0.15: "a guess for small convnets; depthwise ones tend to stay below it, and then need fewer cores",
}
OURS, CHAIN, SHOT = "ours", "albumentations chain", "the same chain, ShotNoise"
DINO, DINO_UINT8, WARP = "lightly-train DINO", "the same, not normalised", "one warpAffine a view"
AIMS = {CHAIN: 0.6, DINO: 0.5, WARP: 2.0}
"""Most that ours may take, as a share of the other."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="*", default=[], help="shard folders of real tooth crops")
    parser.add_argument("--out", type=Path, default=Path("augment-speed"), help="folder for results and peer")
    parser.add_argument("--rounds", type=int, default=11, help="turns of each contestant")
    parser.add_argument("--crops", type=int, default=96, help="crops of each set, evenly spread over it")
    parser.add_argument("--no-peer", action="store_true", help="leave lightly-train out")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # inherited by the peer
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = ViewConfig()
    phantoms = Config(data=DataConfig(phantom_patients=48, phantom_views=1))
    folders = {"phantom": phantom_shards(phantoms, arguments.out / "phantom", print)}
    folders |= {path.name: path for path in arguments.shards}
    if len(folders) <= len(arguments.shards):
        parser.error("two shard folders have one name: rename one (and none may be called phantom)")
    sets = {name: ShardSet(path) for name, path in folders.items()}
    chosen = {name: np.unique(np.linspace(0, len(s) - 1, arguments.crops).astype(int)) for name, s in sets.items()}
    crops = {name: [to_uint8(sets[name].image(int(i))) for i in numbers] for name, numbers in chosen.items()}
    nobody: Any = nullcontext((None, {}))
    with nobody if arguments.no_peer else peer_process(crops, config, arguments.out) as (ask, peer):
        rounds = {name: measured(images, name, config, arguments.rounds, ask) for name, images in crops.items()}
    for name, numbers in chosen.items():
        rounds[name]["read and decode"] = decoded(sets[name], numbers, arguments.rounds)
    geometry = {name: regions_seen(images, config, arguments.rounds) for name, images in crops.items()}
    demands = [demand(name, config) for name in RELEASED]
    machine = {
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        "albumentations": A.__version__,
        "torch": torch.__version__,
    }
    results = {"machine": machine, "peer": peer, "ms": rounds, "regions": geometry, "GFLOP a sample": dict(demands)}
    (arguments.out / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
    counts = f"{config.global_count} x {config.global_size} + {config.local_count} x {config.local_size}"
    print(f"\nms a sample of {counts} views, one core of {machine['cpu']}, {arguments.rounds} rounds")
    if not peer:
        print("lightly-train was left out (--no-peer)")
    for name in rounds:
        print_set(name, crops[name], rounds[name], geometry[name])
    print_cores(list(rounds)[-1], rounds[list(rounds)[-1]], demands)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """uint16 as uint8, which all contestants take; uint8 as it is."""
    return cv2.convertScaleAbs(image, alpha=255 / 65535) if image.dtype == np.uint16 else image


def chain(config: ViewConfig, size: tuple[int, int], scale: tuple[float, float], shot_noise: bool) -> A.Compose:
    """The recipe in stock transforms, each with our operation's probability and a range as near as it allows.

    Left out: burnt-in text (ours has it). Gray [h, w] images, faster here than [h, w, 1].
    """
    height, aspect = size[0], size[1] / size[0]
    stretch = float(np.exp(config.aspect_jitter))
    lean = float(np.degrees(np.arctan(config.shear)))
    sharpen = max(3, 2 * round(3 * config.sharpen_radius * height) + 1)  # the kernel that our blur fills
    motion = max(3, 2 * round(config.motion_length[1] * height / 2) + 1)
    gain = (config.contrast[0] - 1, config.contrast[1] - 1)
    if shot_noise:  # the counterpart in kind; its range in linear light has no exact translation
        noise: A.BasicTransform = A.ShotNoise(scale_range=(0.0005, 0.005), p=config.noise_probability)
    else:  # the counterpart in strength, and much cheaper
        noise = A.GaussNoise(std_range=config.noise_strength, p=config.noise_probability)
    return A.Compose(
        [
            # RegionWarp: area and aspect; a crop too narrow for the aspect is cut, not filled by reflection
            A.RandomResizedCrop(size, scale=scale, ratio=(aspect / stretch, aspect * stretch)),
            A.HorizontalFlip(p=config.mirror_probability),  # RegionWarp: mirror
            A.Affine(  # RegionWarp: rotation and shear; cropped first, so it warps a view and not the source
                rotate=(-config.rotation_degrees, config.rotation_degrees),
                shear={"x": (-lean, lean), "y": (0, 0)},
                border_mode=cv2.BORDER_REFLECT,
                p=config.rotation_probability,
            ),
            # Unsharpness
            A.GaussianBlur(
                blur_limit=0, sigma_limit=tuple(s * height for s in config.blur_sigma), p=config.blur_probability
            ),
            A.MotionBlur(blur_limit=(3, motion), p=config.motion_probability),  # Motion
            noise,  # QuantumNoise
            A.CLAHE(clip_limit=(1, 2), p=config.local_contrast_probability),  # LocalContrast
            A.UnsharpMask(  # Sharpening; amounts above 1 are refused
                blur_limit=(sharpen, sharpen), alpha=(config.sharpen[0], 1.0), threshold=0, p=config.sharpen_probability
            ),
            A.RandomBrightnessContrast(brightness_limit=config.brightness, contrast_limit=gain, p=1),  # Tone
            A.RandomGamma(gamma_limit=tuple(100 * g for g in config.gamma), p=1),  # Tone
            # CollimatorEdge: a strip as high as the view
            A.CoarseDropout((1, 1), (1.0, 1.0), config.border_width, p=config.border_probability),
        ],
        seed=0,
    )


def measured(
    crops: list[np.ndarray], name: str, config: ViewConfig, rounds: int, ask: Callable[[str, str], float] | None
) -> dict[str, list[float]]:
    """Milliseconds a sample of each contestant in each round; one round before them warms up."""
    multi_crop = MultiCrop(config)
    chains = {}
    for label, shot in ((CHAIN, False), (SHOT, True)):
        both = (
            chain(config, config.global_size, config.global_scale, shot),
            chain(config, config.local_size, config.local_scale, shot),
        )
        chains[label] = [both[0]] * config.global_count + [both[1]] * config.local_count
    times: dict[str, list[float]] = {}
    for turn in range(-1, rounds):
        keys = [(0, turn + 1, number) for number in range(len(crops))]
        matrices = [opencv_matrices(multi_crop, crop, key) for crop, key in zip(crops, keys, strict=True)]
        ways = {OURS: partial(timed, multi_crop, crops, keys), WARP: partial(timed, bare_warps, crops, matrices)}
        ways |= {label: partial(timed, chained, crops, [views] * len(crops)) for label, views in chains.items()}
        if ask:
            ways |= {DINO: partial(ask, "whole", name), DINO_UINT8: partial(ask, "bare", name)}
        order = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]  # nobody always goes first
        for label in order:
            milliseconds = ways[label]()
            if turn >= 0:
                times.setdefault(label, []).append(milliseconds)
    return times


def timed(make: Callable[[Any, Any], Any], crops: list[np.ndarray], others: list[Any]) -> float:
    """Milliseconds a crop of `make(crop, other)`."""
    pairs = list(zip(crops, others, strict=True))
    began = time.perf_counter()
    for crop, other in pairs:
        make(crop, other)
    return (time.perf_counter() - began) / len(pairs) * 1e3


def opencv_matrices(multi_crop: MultiCrop, crop: np.ndarray, key: tuple[int, ...]) -> list[tuple[np.ndarray, Any]]:
    """For each view the matrix as OpenCV counts, from the centre of the first pixel, and its (width, height)."""
    made = []
    for region in multi_crop.regions(crop.shape, key):
        matrix = region.matrix.copy()
        matrix[:, 2] += (matrix[:, 0] + matrix[:, 1]) / 2 - 0.5
        made.append((matrix, region.size[::-1]))
    return made


def chained(crop: np.ndarray, views: list[A.Compose]) -> None:
    for view in views:
        view(image=crop)


def bare_warps(crop: np.ndarray, views: list[tuple[np.ndarray, Any]]) -> None:
    for matrix, size in views:
        cv2.warpAffine(crop, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT)


def decoded(shards: ShardSet, numbers: np.ndarray, rounds: int) -> list[float]:
    """Milliseconds a sample to read (from the page cache) and decode the stored image, in each round."""
    indices = [int(i) for i in numbers]
    return [timed(lambda i, _: shards.image(i), indices, indices) for _ in range(rounds + 1)][1:]  # type: ignore[arg-type]


def regions_seen(crops: list[np.ndarray], config: ViewConfig, rounds: int) -> dict[str, float]:
    """Share of the timed views that reach beyond the image, and the largest stretch of one against its region."""
    multi_crop, padded, stretches = MultiCrop(config), [], []
    for turn in range(1, rounds + 1):
        for number, crop in enumerate(crops):
            for region in multi_crop.regions(crop.shape, (0, turn, number)):
                (rows, columns), (h, w) = region.size, crop.shape
                x, y = region.matrix @ np.array([[0, columns, columns, 0], [0, 0, rows, rows], [1, 1, 1, 1]])
                padded.append(min(x.min(), y.min(), w - x.max(), h - y.max()) < -1e-6)
                across, area = np.linalg.norm(region.matrix[:, 0]), abs(np.linalg.det(region.matrix[:, :2]))
                stretches.append(max(across**2 / area, area / across**2))  # a shear along the rows is no stretch
    return {"share padded": float(np.mean(padded)), "largest stretch": float(max(stretches))}


def demand(name: str, config: ViewConfig) -> tuple[str, float]:
    """The backbone and GFLOP a sample: student forward and backward on all views, teacher forward on the global ones.

    Forward passes are counted, on torch's meta device, where nothing is computed; backward is taken as two of them:
    torch counts the backward pass of a grouped convolution as that of a dense one, many times too much for depthwise
    ones. The heads are left out: they are below 0.1 %.
    """
    backbone = build_backbone(name).to("meta").train()
    passes = []
    for count, size in ((config.global_count, config.global_size), (config.local_count, config.local_size)):
        # attention as plain products, because fused kernels are not counted on this device
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            backbone(torch.empty(count, 1, *size, device="meta"))
        passes.append(counter.get_total_flops())
    return name, (3 * sum(passes) + passes[0]) / 1e9


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def print_set(name: str, crops: list[np.ndarray], times: dict[str, list[float]], geometry: dict[str, float]) -> None:
    """A row for each contestant; its ratio is ours over it, the median of the rounds'."""
    height, width = np.median([crop.shape for crop in crops], axis=0)
    print(f"\n{name}: {len(crops)} crops, median {height:.0f} x {width:.0f} pixels")
    print("\n| | ms, least | median | ours / it | aim |\n|---|---|---|---|---|")
    for label in (OURS, CHAIN, SHOT, DINO, DINO_UINT8, WARP, "read and decode"):
        if label in times:
            ratio = statistics.median(a / b for a, b in zip(times[OURS], times[label], strict=True))
            told = "" if label in (OURS, "read and decode") else f"{ratio:.2f}"
            aim = f"<= {AIMS[label]}: {'met' if ratio <= AIMS[label] else 'missed'}" if label in AIMS else ""
            print(f"| {label} | {min(times[label]):.2f} | {statistics.median(times[label]):.2f} | {told} | {aim} |")
    print(f"\nviews that reach beyond the image: {geometry['share padded']:.1%}; ", end="")
    print(f"largest stretch: {geometry['largest stretch']:.3f} (at most 1.33)")


def print_cores(name: str, times: dict[str, list[float]], demands: list[tuple[str, float]]) -> None:
    """Cores for one H100 by backbone and assumed utilisation."""
    own = statistics.median(times[OURS]) + statistics.median(times["read and decode"])
    print(f"\nCores of this kind for one H100 on {name} crops, an ESTIMATE, as no H100 was measured:")
    print(f"  cores = samples/s x (views + decoding) ms / 1000 = samples/s x {own / 1e3:.5f}; put in your samples/s")
    print(f"  samples/s here = utilisation x {H100_PEAK / 1e12:.0f} TFLOP/s (dense bf16) / FLOP a sample")
    for share, why in UTILISATION.items():
        print(f"  assumed utilisation {share:.0%}: {why}")
    heads = [f"samples/s at {share:.0%} | cores" for share in UTILISATION]
    print(f"\n| backbone | GFLOP a sample | {' | '.join(heads)} |\n|---|---{'|---|---' * len(heads)}|")
    for backbone, work in demands:
        rates = [share * H100_PEAK / (work * 1e9) for share in UTILISATION]
        cells = " | ".join(f"{rate:,.0f} | {rate * own / 1e3:.1f}" for rate in rates)
        print(f"| {backbone} | {work:.1f} | {cells} |")


if __name__ == "__main__":
    main()
