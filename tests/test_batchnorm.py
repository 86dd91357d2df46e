"""The exported teacher is right in `eval()`: its BatchNorm buffers are those of crops as users give them."""

import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from released import released

from augment.config import ViewConfig
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.phantom.render import write_archive
from data_shards.shards.stream import ShardSet, Stream
from pretrain.checkpoints.combined import load_combined, save_combined
from pretrain.checkpoints.init_weights import read_initial, start_from
from pretrain.config.schema import Config, ConfigError, DataConfig, OptimConfig
from pretrain.evaluation.embed import embed, unit
from pretrain.evaluation.knn import knn_over_folds
from pretrain.evaluation.labelled_crops import load_labelled
from pretrain.method.step_rates import rates_at
from pretrain.method.trainer import Trainer
from pretrain.models.batchnorm import calibration_crops, exported
from pretrain.models.normalization import normalised
from pretrain.models.student_teacher import Network, batchnorms, build_networks

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


def started(backbone: str, path: Path, **more) -> Trainer:
    """A trainer that starts from weights with statistics of their own, written to `path`."""
    views = ViewConfig(global_size=SIZE, local_size=SIZE, local_count=1)
    config = Config(backbone=backbone, steps=2, data=DataConfig(batch_size=4, workers=0), views=views)
    begun, _ = build_networks(config)
    generator = torch.Generator().manual_seed(0)
    for norm in batchnorms(begun.backbone):
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
    save_combined(path, begun.backbone, begun.proj_head)
    config = replace(config, init=str(path), seed=1, optim=OptimConfig(init_freeze=0.05), **more)
    trainer = Trainer(config, Accelerator(cpu=True), range(100))
    start_from(read_initial(str(path)), config, trainer.student, trainer.teacher)
    return trainer


@pytest.mark.parametrize("name", WITH_BATCHNORM)
def test_a_run_of_no_step_gives_back_its_start_to_the_bit(name, tmp_path):
    """Statistics of new crops alone cost ImageNet's features 2 to 8 points, so a run from weights keeps the start's."""
    trainer = started(name, tmp_path / "start.pth")
    images = np.random.default_rng(0).integers(0, 256, (64, *SIZE), dtype=np.uint8)
    export = exported(trainer.teacher, images, trainer.config)
    start = load_combined(tmp_path / "start.pth").backbone
    state = export.backbone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in start.state_dict().items())
    save_combined(tmp_path / "end.pth", export.backbone, export.proj_head)
    end = load_combined(tmp_path / "end.pth").backbone
    assert np.array_equal(*(embed(backbone, images[:8], 0.5, 0.25) for backbone in (start, end)))
    assert not torch.equal(export.proj_head.mlp[2].running_mean, trainer.teacher.proj_head.mlp[2].running_mean)


@pytest.mark.parametrize(("batchnorm", "kept"), [("auto", True), ("frozen", True), ("batch", False)])
def test_steps_keep_frozen_statistics_and_train_scale_and_shift(batchnorm, kept, tmp_path):
    trainer = started("test_resnet", tmp_path / "start.pth", batchnorm=batchnorm)
    before = copy.deepcopy(trainer.student.backbone.state_dict())
    trainer.trained = trainer.student
    for _ in range(2):
        views = [torch.randint(0, 256, (count * 4, 1, *SIZE), dtype=torch.uint8) for count in (2, 1)]
        trainer.train_step(views, rates_at(trainer.config, 1, 2))
    for network in (trainer.student, trainer.teacher):
        for key, value in network.backbone.state_dict().items():
            if "running" in key:
                assert torch.equal(value, before[key]) == kept, key
    after = trainer.student.backbone.state_dict()
    assert not torch.equal(after["m.bn1.weight"], before["m.bn1.weight"])
    images = np.random.default_rng(0).integers(0, 256, (64, *SIZE), dtype=np.uint8)
    export = exported(trainer.teacher, images, trainer.config).backbone.state_dict()
    assert torch.equal(export["m.bn1.running_var"], before["m.bn1.running_var"]) == kept


def test_statistics_are_frozen_only_in_a_run_from_weights():
    assert not Config().freezes_batchnorm
    assert Config(init="start.pth").freezes_batchnorm
    with pytest.raises(ConfigError, match="--batchnorm frozen keeps the statistics of --init, which is not given"):
        Config(batchnorm="frozen").check(1)
