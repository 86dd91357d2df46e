"""Full fine-tuning end to end, as the released study did: the backbone slowly, a new classifier faster."""

from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from augment import MultiCrop, ViewConfig, fit, stacked
from downstream.config import DownstreamError, FinetuneConfig
from downstream.crops import Crops, find_crops
from downstream.weights import Weights
from pretrain.batches import normalised
from pretrain.checkpoint import replace_atomically
from pretrain.evaluate import balanced_accuracy
from pretrain.precision import resolve_precision
from pretrain.schedules import warmup_cosine

Draw = tuple[int, int]  # epoch and number of a crop


def finetune(config: FinetuneConfig, weights: Weights) -> dict[str, Any]:
    """Train on some patients, validate on others; write `model.pth`, the state of Sequential(backbone, Linear).

    What is reported and written is the model after the last epoch, not the best one: choosing it by these very
    patients would flatter it.
    """
    crops = find_crops(config.shards, [config.label], config.query)
    held = crops.query if config.query else held_out(crops.patients, config.holdout, config.seed)
    classes, codes = np.unique(crops.labels[config.label], return_inverse=True)
    if len(classes) < 2:
        raise DownstreamError(f"every crop has {config.label} '{classes[0]}': there is nothing to learn")
    train, valid = np.flatnonzero(~held), np.flatnonzero(held)
    views = LabelledViews(crops, codes, weights.size, config)
    epochs = [shuffled(train, epoch, config) for epoch in range(config.epochs)]

    tuner = Tuner(config, weights, class_weights(codes[train], len(classes)), sum(map(len, epochs)))
    curve: list[dict[str, Any]] = []
    with tqdm(total=tuner.total, unit="step", dynamic_ncols=True) as bar:
        for epoch, batches in enumerate(epochs):
            losses = []
            for images, targets in views.loader(batches):
                losses.append(tuner.step(images, targets))
                bar.update()
            predicted = np.concatenate([tuner.predict(images) for images, _ in views.loader(in_order(valid, config))])
            score = round(balanced_accuracy(codes[valid], predicted), 4)
            curve.append({"epoch": epoch + 1, "loss": float(np.mean(losses)), "balanced_accuracy": score})
            bar.set_postfix_str(f"validation {score:.3f}")

    state = {key: tensor.detach().cpu().contiguous() for key, tensor in tuner.model.state_dict().items()}
    replace_atomically(Path(config.out) / "model.pth", lambda file: torch.save(state, file))
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (codes[valid], predicted), 1)
    recall = [round(int(row[i]) / int(row.sum()), 4) if row.any() else None for i, row in enumerate(confusion)]
    return {
        "label": config.label,
        "classes": classes.tolist(),
        "balanced_accuracy": curve[-1]["balanced_accuracy"],
        "chance": round(1 / len(np.unique(codes[valid])), 4),
        "recall": dict(zip(classes.tolist(), recall, strict=True)),
        "confusion": confusion.tolist(),
        "confusion_axes": "rows are the truth, columns what was predicted, both in the order of `classes`",
        "curve": curve,
        "train": {"crops": len(train), "patients": len(np.unique(crops.patients[train]))},
        "validation": {"crops": len(valid), "patients": len(np.unique(crops.patients[valid]))},
        "precision": tuner.precision,
    }


class Tuner:
    """Backbone, new classifier, optimiser and schedule; one step at a time."""

    def __init__(self, config: FinetuneConfig, weights: Weights, balance: Tensor, total: int) -> None:
        self.weights, self.total, self.done = weights, total, 0
        self.warmup, self.clip = round(config.warmup * total), config.clip
        self.device = next(weights.model.parameters()).device
        torch.manual_seed(config.seed)
        classifier = nn.Linear(weights.model.num_features, len(balance)).to(self.device)
        self.model = nn.Sequential(weights.model, classifier)
        self.balance = balance.to(self.device)
        self.precision = resolve_precision("auto", self.device).mixed
        groups = [
            {"params": weights.model.parameters(), "peak": config.lr, "weight_decay": config.weight_decay},
            {"params": classifier.parameters(), "peak": config.classifier_lr, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups)

    def step(self, images: Tensor, targets: Tensor) -> float:
        """One step on images [B, H, W] and classes [B]; returns the loss. Raises DownstreamError if it diverged."""
        for group in self.optimizer.param_groups:
            group["lr"] = warmup_cosine(self.done, self.total, self.warmup, group["peak"], 0.0)
        self.model.train()
        loss = F.cross_entropy(self._logits(images), targets.to(self.device), weight=self.balance)
        if not torch.isfinite(loss):
            raise DownstreamError(f"the loss is {loss.item()} at step {self.done}: lower --lr and --classifier_lr")
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return loss.item()

    @torch.no_grad()
    def predict(self, images: Tensor) -> np.ndarray:
        """Classes [B] of images [B, H, W]."""
        self.model.eval()
        return self._logits(images).argmax(1).cpu().numpy()

    def _logits(self, images: Tensor) -> Tensor:
        images = normalised(images.to(self.device).unsqueeze(1), self.weights.mean, self.weights.std)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model(images).float()


class LabelledViews(Dataset[tuple[np.ndarray, int]]):
    """(epoch, crop) -> [H, W] and class: a view drawn from (seed, epoch, crop), or resized where epoch is -1."""

    def __init__(self, crops: Crops, codes: np.ndarray, size: tuple[int, int], config: FinetuneConfig) -> None:
        self.crops, self.codes, self.size = crops, codes, size
        self.seed, self.workers = config.seed, config.workers
        self.view = MultiCrop(mild_views(size, config.mirror))

    def __getitem__(self, draw: Draw) -> tuple[np.ndarray, int]:
        epoch, i = draw
        image = self.crops.image(i)
        shown = fit(image, self.size) if epoch < 0 else self.view(image, (self.seed, epoch, i))[0]
        return shown, int(self.codes[i])

    def loader(self, batches: list[list[Draw]]) -> DataLoader[tuple[Tensor, Tensor]]:
        """Batches of images [B, H, W], as `stacked`, and classes [B]."""
        loader = DataLoader(
            self,
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=_stack,
            worker_init_fn=_single_threaded,
        )
        return cast("DataLoader[tuple[Tensor, Tensor]]", loader)


def mild_views(size: tuple[int, int], mirror: bool) -> ViewConfig:
    """One view that keeps what a label may hang on: nearly the whole crop, upright, sharp, its grays moved a little."""
    return ViewConfig(
        global_size=size,
        global_count=1,
        local_count=0,
        global_scale=(0.8, 1.0),
        mirror_probability=0.5 if mirror else 0.0,
        aspect_jitter=0.1,
        brightness=(-0.1, 0.1),
        contrast=(0.8, 1.25),
        gamma=(0.8, 1.25),
        shear=0.04,
        blur_probability=0.1,
        motion_probability=0.0,
        noise_probability=0.1,
        local_contrast_probability=0.0,
        sharpen_probability=0.1,
        border_probability=0.0,
        text_probability=0.0,
    )


def held_out(patients: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which crops validate, bool [N]: all those of a random `share` of the patients, at least one and not all."""
    unique = np.random.default_rng(seed).permutation(np.unique(patients))
    held = max(1, round(share * len(unique)))
    if held >= len(unique):
        raise DownstreamError(
            f"{len(unique)} patients cannot be split with --holdout {share}: "
            "pack more, or tell `pack` with --patient how to read them"
        )
    return np.isin(patients, unique[:held])


def class_weights(codes: np.ndarray, classes: int) -> Tensor:
    """float32 [K]: N / (K n_k), so that every class weighs the same in the loss whatever its number of crops."""
    return torch.from_numpy(len(codes) / (classes * np.bincount(codes, minlength=classes).clip(1))).float()


def shuffled(crops: np.ndarray, epoch: int, config: FinetuneConfig) -> list[list[Draw]]:
    """Full batches in the order of (seed, epoch); the few crops that remain (others each epoch) are left out."""
    draws = [(epoch, int(i)) for i in np.random.default_rng([config.seed, epoch]).permutation(crops)]
    size = min(config.batch_size, len(draws))
    return [draws[i : i + size] for i in range(0, len(draws) - size + 1, size)]


def in_order(crops: np.ndarray, config: FinetuneConfig) -> list[list[Draw]]:
    """Every crop once, to validate."""
    draws = [(-1, int(i)) for i in crops]
    return [draws[i : i + config.batch_size] for i in range(0, len(draws), config.batch_size)]


def _stack(samples: list[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor]:
    images, codes = zip(*samples, strict=True)
    return torch.from_numpy(stacked(images)), torch.tensor(codes)


def _single_threaded(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers themselves are the parallelism
    torch.set_num_threads(1)
