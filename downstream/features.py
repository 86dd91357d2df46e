"""Features of labelled crops: one pass over the images, kept in OUT so that the next command need not make it."""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import timm
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from augment import ViewError, fit, stacked
from data_shards.errors import ShardError
from downstream.config import CropsConfig
from downstream.crops import Crops
from downstream.weights import Weights, to_device
from pretrain.backbones import Backbone, build_backbone
from pretrain.batchnorm import calibrate_batchnorm
from pretrain.checkpoint import replace_atomically
from pretrain.evaluate import PIXELS, embed, pixel_features, size_features

KINDS = ("trained", "random", "pixels", "size")
CALIBRATION = 1024
"""Crops for the BatchNorm statistics of a random backbone: they are steady well before."""
KEPT = "features.npz"


def embed_crops(crops: Crops, weights: Weights, config: CropsConfig) -> np.ndarray:
    """The trained backbone's features of every crop, float32 [N, C]. Raises ShardError for an unreadable crop."""
    return _embedded(crops, {"trained": weights.model}, weights, config)["trained"]


def feature_sets(crops: Crops, weights: Weights, config: CropsConfig, seed: int) -> dict[str, np.ndarray]:
    """Features [N, ...] by what they come from, after one pass over the images, or those kept of an earlier pass.

    `trained`, and what it must beat: `random`, the same backbone as it began (its BatchNorm calibrated on these crops,
    without which it would lose for no good reason), `pixels`, 24 x 24 grays, and `size`, the crop's height and width.
    """
    kept, identity = Path(config.out) / KEPT, _identity(crops, weights, seed)
    if found := _read(kept, identity):
        print("the features are those kept in OUT by an earlier command")
        return found
    random = random_backbone(crops, weights, seed)
    found = _embedded(crops, {"trained": weights.model, "random": random}, weights, config)
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


def _identity(crops: Crops, weights: Weights, seed: int) -> str:
    """What the features follow from: the weights' bytes, the input convention, the crops, and the library."""
    digest = hashlib.sha256()
    for tensor in weights.model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for source in crops.sets:
        digest.update(source.checksum.encode())
    digest.update(np.array(crops.places).tobytes())
    digest.update(json.dumps([weights.stated(), seed, timm.__version__, torch.__version__]).encode())
    return digest.hexdigest()


def _read(path: Path, identity: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: kept[name] for name in KINDS} if str(kept["identity"]) == identity else {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none, or a torn one: it is made anew
        return {}


class Shown(NamedTuple):
    """A crop three times: as the backbone wants it, as 24 x 24 grays, and its height and width in px."""

    image: np.ndarray
    pixels: np.ndarray
    size: tuple[int, int]


class _Resized(Dataset["Shown | ValueError"]):
    """Number of a crop -> Shown; the error of one that cannot be read comes back, as a worker cannot raise it."""

    def __init__(self, crops: Crops, size: tuple[int, int]) -> None:
        self.crops, self.size = crops, size

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, i: int) -> "Shown | ValueError":
        try:
            image = self.crops.image(i)
            return Shown(fit(image, self.size), fit(image, PIXELS), image.shape)
        except (ShardError, ViewError) as error:
            return error


def _start_worker(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers themselves are the parallelism
    torch.set_num_threads(1)


def _batches(crops: Crops, weights: Weights, config: CropsConfig) -> Iterator[list[Shown]]:
    loader = DataLoader(
        _Resized(crops, weights.size),
        batch_size=config.batch_size,
        num_workers=config.workers,
        collate_fn=list,
        worker_init_fn=_start_worker,
    )
    for batch in loader:
        for shown in batch:
            if isinstance(shown, ValueError):
                raise shown
        yield batch


def _embedded(
    crops: Crops, models: dict[str, Backbone], weights: Weights, config: CropsConfig
) -> dict[str, np.ndarray]:
    """Features by model, all given the images that `weights` wants; `pixels` uint8 [N, 576] and `size` [N, 2] in px."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*models, "pixels", "size")}
    with tqdm(total=len(crops), unit="crop", desc="embedding", dynamic_ncols=True, disable=None) as bar:
        for batch in _batches(crops, weights, config):
            found["pixels"].append(stacked([shown.pixels for shown in batch]).reshape(len(batch), -1))
            found["size"].append(np.array([shown.size for shown in batch]))
            images = stacked([shown.image for shown in batch])
            for name, model in models.items():
                found[name].append(embed(model, images, weights.mean, weights.std, len(images)))
            bar.update(len(batch))
    return {name: np.concatenate(parts) for name, parts in found.items()}
