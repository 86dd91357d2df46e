"""What autograd keeps of a crop until its backward pass, with and without gradient checkpointing, by backbone.

    python benchmarks/activations.py [--backbones vit starnet_s4 ...] [--global-size 320 240] [--local-size 128 96]

A crop is two global and eight local views; forward passes in bf16 on a CPU, counted storage by storage, as what two
more crops add.
"""

import argparse

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from pretrain.config.released_backbones import RELEASED
from pretrain.models.backbones import build_backbone

GLOBAL, LOCAL = 2, 8  # views of a crop


def kept_bytes(backbone: nn.Module, views: torch.Tensor) -> int:
    """Bytes that autograd keeps of a forward pass of `views` [B, 1, H, W]: each storage once, parameters not."""
    parameters = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    storages: dict[int, int] = {}
    held = []  # so that no storage is freed and its place taken by another

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        features = backbone(views)
    del features
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(RELEASED))
    parser.add_argument("--global-size", type=int, nargs=2, default=[320, 240])
    parser.add_argument("--local-size", type=int, nargs=2, default=[128, 96])
    given = parser.parse_args()
    print("| | MB a crop | GB for 64 | checkpointed, MB a crop | GB for 64 |\n|---|---|---|---|---|")
    for name in given.backbones:
        cells = []
        for again in (False, True):
            backbone = build_backbone(name).to(memory_format=torch.channels_last).train()
            if again:
                backbone.checkpoint_gradients(name)
            sizes = (GLOBAL, given.global_size), (LOCAL, given.local_size)
            two, four = (
                sum(kept_bytes(backbone, torch.randn(crops * n, 1, *size)) for n, size in sizes) for crops in (2, 4)
            )
            crop = (four - two) / 2  # what does not grow with the batch, such as weights in bf16, is no crop's
            cells += [f"{crop / 1e6:.0f}", f"{64 * crop / 1e9:.1f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
