"""The exported teacher is right in `eval()`: its BatchNorm buffers are those of crops as users give them."""

import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from released import released

from augment.config import ViewConfig
from data_shards.pack import PackConfig, pack
from data_shards.phantom import write_archive
from data_shards.stream import ShardSet, Stream
from pretrain.batches import normalised
from pretrain.batchnorm import calibration_crops, exported
from pretrain.config import Config, DataConfig
from pretrain.evaluate import embed, knn_over_folds, load_labelled, unit
from pretrain.student_teacher import Network
from pretrain.trainer import Trainer

SIZE = (64, 48)
WITH_BATCHNORM = (
    "ghostnetv3", "starnet_s4", "fastvit_t8", "resnext26", "densenet121", "efficientnetv2_s", "regnetz", "mobilenetv4",
)  # fmt: skip


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Shards of so many phantom patients, rendered once."""

    @lru_cache
    def render(patients: int) -> Path:
        folder = tmp_path_factory.mktemp("phantom")
        write_archive(folder / "phantom.zip", patients=patients, seed=5, views=2)
        sources, key = [str(folder / "phantom.zip")], b"phantoms are nobody"
        pack(PackConfig(sources=sources, out=folder / "shards", patient=r"(p\d+)-", holdout=0, key=key, quiet=True))
        return folder / "shards"

    return render


def trained(backbone: str, shards: Path, steps: int) -> tuple[Network, Network]:
    """The teacher of a short run as training leaves it, and as it is exported."""
    config = Config(
        backbone=backbone,
        steps=steps,
        data=DataConfig(batch_size=16, workers=0),
        views=ViewConfig(global_size=SIZE, local_size=SIZE, local_count=1),
    )
    stream = Stream([ShardSet(shards)], None, seed=0)
    trainer = Trainer(config, Accelerator(cpu=True), stream)
    assert trainer.run(lambda _: None, lambda: None, lambda: False)
    return trainer.teacher, exported(trainer.teacher, calibration_crops(stream, SIZE), config)


@torch.no_grad()
def features_in_train_mode(backbone: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """One pass over all crops, so that BatchNorm normalises by the whole set."""
    batch = normalised(torch.from_numpy(images).unsqueeze(1), 0.5, 0.25)
    return copy.deepcopy(backbone).train()(batch).numpy()


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over the last 512 crops."""
    return float((unit(one) * unit(other)).sum(1)[-512:].mean())


@pytest.mark.parametrize(
    ("name", "patients", "steps"),
    [("starnet_s050", 70, 8), *released(WITH_BATCHNORM, slow=("fastvit_t8",), values=lambda name: (name, 150, 20))],
)
def test_eval_features_of_the_export_are_those_of_the_whole_sets_statistics(name, patients, steps, packed):
    shards = packed(patients)
    crops = load_labelled([ShardSet(shards)], "tooth_type", SIZE)
    assert len(crops.labels) >= 512
    teacher, export = trained(name, shards, steps)
    in_eval, as_left = (embed(network.backbone, crops.images, 0.5, 0.25) for network in (export, teacher))
    in_train = features_in_train_mode(export.backbone, crops.images)
    in_eval_knn, in_train_knn = (knn_over_folds(unit(f), crops.labels, crops.patients) for f in (in_eval, in_train))
    print(
        f"{name}: cosine {cosine(in_eval, in_train):.3f} ({cosine(as_left, in_train):.3f} as training leaves it), "
        f"k-NN {in_eval_knn:.3f} in eval, {in_train_knn:.3f} in training mode"
    )
    assert cosine(in_eval, in_train) > 0.95
    assert cosine(as_left, in_train) < cosine(in_eval, in_train)
    assert abs(in_eval_knn - in_train_knn) < 0.02


def test_the_heads_buffers_are_measured_too_and_the_teacher_is_left_alone(packed):
    shards = packed(70)
    teacher, export = trained("starnet_s050", shards, steps=2)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    images = calibration_crops(Stream([ShardSet(shards)], None, seed=0), SIZE)
    again = exported(teacher, images, Config())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in export.state_dict().items())
    assert not torch.equal(export.proj_head.mlp[2].running_mean, teacher.proj_head.mlp[2].running_mean)
    assert all(torch.equal(a, b) for a, b in zip(export.parameters(), teacher.parameters(), strict=True))
    assert export.training == teacher.training
