"""How much of the machine `python -m downstream embed` uses: beside the bare forward pass, and beside reading alone.

    python benchmarks/embed.py --checkpoint runs/ufba/ufba.pth --shards shards/ufba/holdout

`forward` is the backbone on ready images of the same size and batch, the most that the device gives; `read` is the same
crops read, decoded and resized by as many workers, without a backbone. Where forward and workers share the cores, no
command can be faster than both in turn, 1 / (1 / forward + 1 / read); where the device is apart, than the slower of the
two. Rounds are interleaved and medians taken, as others may use the machine.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator

from downstream.config import CropsConfig, readers
from downstream.data.crops import Crops, find_crops
from downstream.features.embedded_crops import Resized, batches, embed_crops
from downstream.features.weights import Weights, load_weights
from pretrain.evaluation.embed import embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--shards", nargs="+", required=True)
    parser.add_argument("--workers", type=int, default=readers())
    parser.add_argument("--batch_size", type=int, default=CropsConfig.batch_size)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    config = CropsConfig(
        checkpoint=given.checkpoint, out="", shards=given.shards, workers=given.workers, batch_size=given.batch_size
    )
    weights, crops, accelerator = load_weights(config), find_crops(given.shards, []), Accelerator()
    tried: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(crops, weights, config),
        "read": lambda: read(crops, weights, config),
        "embed": lambda: embed_crops(crops, weights, config, accelerator),
    }
    seconds: dict[str, list[float]] = {name: [] for name in tried}
    for _ in range(given.rounds):
        for name, work in tried.items():
            began = time.monotonic()
            work()
            seconds[name].append(time.monotonic() - began)
    speed = {name: len(crops) / float(np.median(times)) for name, times in seconds.items()}
    device = next(weights.model.parameters()).device
    size = "x".join(map(str, weights.size))
    print(f"{weights.backbone} at {size}, {len(crops)} crops, {given.workers} workers, {device}")
    print("| forward, crops/s | read | embed | embed / forward | embed / the slower | embed / both in turn |")
    print("|---|---|---|---|---|---|")
    slower, turn = min(speed["forward"], speed["read"]), 1 / (1 / speed["forward"] + 1 / speed["read"])
    shares = (speed["embed"] / limit for limit in (speed["forward"], slower, turn))
    print("| " + " | ".join([f"{s:.0f}" for s in speed.values()] + [f"{share:.2f}" for share in shares]) + " |")


def forward(crops: Crops, weights: Weights, config: CropsConfig) -> None:
    images = np.zeros((config.batch_size, *weights.size), np.uint8)
    for first in range(0, len(crops), config.batch_size):
        few = images[: len(crops) - first]
        embed(weights.model, few, weights.mean, weights.std, len(few))


def read(crops: Crops, weights: Weights, config: CropsConfig) -> None:
    for _ in batches(Resized(crops, np.arange(len(crops)), weights.size), config):
        pass


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
