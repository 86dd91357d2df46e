"""Features of labelled crops: one pass over the images, kept in OUT so that the next command need not make it."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from augment import ViewError, fit, stacked
from data_shards.errors import ShardError
from downstream.config import CropsConfig, ReadConfig
from downstream.data.crops import Crops
from downstream.features.weights import Weights, to_device
from pretrain.evaluation.embed import embed, embed_maps, pixel_features, size_features
from pretrain.evaluation.labelled_crops import PIXELS
from pretrain.models.backbones import Backbone, build_backbone
from pretrain.models.batchnorm import calibrate_batchnorm
from tooth_foundations.core.files import replace_atomically

KINDS = ("trained", "random", "pixels", "size")
CALIBRATION = 1024
"""Crops for the BatchNorm statistics of a random backbone: they are steady well before."""
KEPT = "features.npz"


def embed_crops(crops: Crops, weights: Weights, config: CropsConfig, accelerator: Accelerator) -> np.ndarray:
    """The trained backbone's features of every crop, float32 [N, C], the same on every process.

    Called on every process alike, each of which embeds a share. Raises ShardError for an unreadable crop.
    """
    share = np.array_split(np.arange(len(crops)), accelerator.num_processes)[accelerator.process_index]
    shown = accelerator.is_main_process
    found = _embedded(Resized(crops, share, weights.size), {"trained": weights.model}, weights, config, shown=shown)
    own = found.get("trained", np.empty((0, weights.model.num_features), np.float32))
    return np.concatenate(gather_object([own]))


def feature_sets(crops: Crops, weights: Weights, config: ReadConfig, seed: int) -> dict[str, np.ndarray]:
    """Features [N, ...] by what they come from, after one pass over the images, or those kept of an earlier pass.

    `trained`, and what it must beat: `random`, the same backbone as it began (its BatchNorm calibrated on these crops,
    without which it would lose for no good reason), `pixels`, 24 x 24 grays, and `size`, the crop's height and width.
    """
    kept, identity = Path(config.out) / KEPT, _identity(crops, weights, config.features, seed)
    if found := _read(kept, identity):
        print("the features are those kept in OUT by an earlier command")
        return found
    random = random_backbone(crops, weights, seed)
    resized = Resized(crops, np.arange(len(crops)), weights.size, PIXELS)
    read = embed_maps if config.features == "maps" else embed
    found = _embedded(resized, {"trained": weights.model, "random": random}, weights, config, read)
    found |= {"pixels": pixel_features(found["pixels"]), "size": size_features(found["size"])}
    arrays: dict[str, Any] = {"identity": np.array(identity), **found}
    replace_atomically(kept, lambda file: np.savez(file, **arrays))
    return found


def random_backbone(crops: Crops, weights: Weights, seed: int) -> Backbone:
    """The same backbone with random weights of `seed`, its BatchNorm set to the statistics of these crops."""
    torch.manual_seed(seed)
    random = to_device(build_backbone(weights.backbone))
    sample = np.linspace(0, len(crops) - 1, min(CALIBRATION, len(crops))).astype(int)
    images = stacked([fit(crops.image(i), weights.size) for i in sample])
    calibrate_batchnorm(random, images, weights.mean, weights.std)
    return random


def _identity(crops: Crops, weights: Weights, features: str, seed: int) -> str:
    """What the features follow from: the weights' bytes, how they are read, the input, the crops, and the library."""
    digest = hashlib.sha256()
    for tensor in weights.model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for source in crops.sets:
        digest.update(source.checksum.encode())
    digest.update(np.array(crops.places).tobytes())
    digest.update(json.dumps([weights.stated(), features, seed, timm.__version__, torch.__version__]).encode())
    return digest.hexdigest()


def _read(path: Path, identity: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in KINDS} if str(kept["identity"]) == identity else {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none, or a torn one: it is made anew
        return {}


class Shown(NamedTuple):
    """Crops as the backbone wants them, [B, H, W] as `stacked`, as small grays [B, P], and heights and widths in px."""

    images: Tensor
    pixels: Tensor
    sizes: Tensor


class Resized(Dataset["Sample | ValueError"]):
    """Place in `chosen` -> that crop at `size`, at the size of `pixels` if one is given, and its own size.

    The error of one that cannot be read comes back, as a worker cannot raise it.
    """

    def __init__(
        self, crops: Crops, chosen: np.ndarray, size: tuple[int, int], pixels: tuple[int, int] = (0, 0)
    ) -> None:
        self.crops, self.chosen, self.size, self.pixels = crops, chosen, size, pixels

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> "Sample | ValueError":
        try:
            image = self.crops.image(int(self.chosen[i]))
            grays = fit(image, self.pixels) if all(self.pixels) else image[:0, :0]
            return fit(image, self.size), grays, image.shape
        except (ShardError, ViewError) as error:
            return error


Sample = tuple[np.ndarray, np.ndarray, tuple[int, ...]]


def _stack(samples: "list[Sample | ValueError]") -> Shown | ValueError:
    """In the worker, so that a batch reaches this process through shared memory, not through a pipe."""
    readable: list[Sample] = []
    for sample in samples:
        if isinstance(sample, ValueError):
            return sample
        readable.append(sample)
    images, grays, sizes = zip(*readable, strict=True)
    pixels = stacked(grays).reshape(len(grays), -1)
    return Shown(torch.from_numpy(stacked(images)), torch.from_numpy(pixels), torch.tensor(sizes))


def _start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers themselves are the parallelism
    torch.set_num_threads(1)


def batches(resized: Resized, config: CropsConfig) -> Iterator[Shown]:
    """The chosen crops in order, read and resized by `--workers` processes. Raises ShardError for an unreadable one."""
    loader = DataLoader(
        resized,
        batch_size=config.batch_size,
        num_workers=config.workers,
        collate_fn=_stack,
        worker_init_fn=_start_worker,
    )
    for batch in loader:
        if isinstance(batch, ValueError):
            raise batch
        yield batch


def _embedded(
    resized: Resized,
    models: dict[str, Backbone],
    weights: Weights,
    config: CropsConfig,
    read: Callable[..., np.ndarray] = embed,
    shown: bool = True,
) -> dict[str, np.ndarray]:
    """Features by model, all given the images that `weights` wants; `pixels` [N, P] and `size` [N, 2] in px."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*models, "pixels", "size")}
    bar = tqdm(total=len(resized), unit="crop", desc="embedding", dynamic_ncols=True, disable=None if shown else True)
    with bar:
        for batch in batches(resized, config):
            found["pixels"].append(batch.pixels.numpy())
            found["size"].append(batch.sizes.numpy())
            for name, model in models.items():
                images = batch.images.numpy()
                found[name].append(read(model, images, weights.mean, weights.std, len(images)))
            bar.update(len(batch.images))
    return {name: np.concatenate(parts) for name, parts in found.items() if parts}
