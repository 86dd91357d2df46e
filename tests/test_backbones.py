"""All released backbones, and others, through the whole of training at the sizes of the release."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from released import released
from torch.autograd.graph import saved_tensors_hooks

from augment.config import ViewConfig
from data_shards.shards.stream import ShardSet, Stream
from pretrain.checkpoints.combined import load_combined, save_combined
from pretrain.checkpoints.weights_io import load_resume, save_resume
from pretrain.config.released_backbones import RELEASED
from pretrain.config.schema import Config, DataConfig
from pretrain.method.trainer import Trainer
from pretrain.models.backbones import BackboneError, build_backbone, check_width_for_bf16, freeze_unused
from pretrain.models.projection_head import proj_head

OTHERS = (
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "edgenext_xx_small",
    "mobilenetv3_small_050",
)
"""Timm models that are not released: a plain one, windows in NHWC, a plain ViT, a hybrid, squeeze and excitation."""


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Stream:
    """24 crops of noise as foreign shards."""
    path = tmp_path_factory.mktemp("noise") / "noise.tar"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(24):
            pixels = cv2.resize(rng.integers(0, 256, (20, 12), dtype=np.uint8), (90, 160))
            content = cv2.imencode(".png", pixels)[1].tobytes()
            info = tarfile.TarInfo(f"{i:03d}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Stream([ShardSet(path)], None, seed=0)


def trainer_of(backbone: str, stream: Stream) -> Trainer:
    sizes = {"global_size": (320, 240), "local_size": (128, 96)}
    config = Config(
        backbone=backbone,
        steps=4,
        checkpoint_every=2,
        data=DataConfig(batch_size=2, workers=0),
        views=ViewConfig(local_count=1, **sizes),
    )
    return Trainer(config, Accelerator(cpu=True), stream)


def test_parameters_of_no_use_are_not_trained():
    backbone = build_backbone("hrnet_w18_small")
    freeze_unused(backbone, (64, 64))
    backbone(torch.randn(2, 1, 64, 64)).sum().backward()
    assert {p.requires_grad for p in backbone.parameters()} == {True, False}
    assert all((p.grad is not None) == p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("name", released((*RELEASED, *OTHERS), fast=("mambaout_femto", "resnet18"), slow=OTHERS))
def test_backbone_trains_resumes_and_reloads_at_the_released_sizes(name, stream, tmp_path: Path):
    whole, lines, saved = trainer_of(name, stream), [], tmp_path / "step-00000002.pth"
    begun = [p.clone() for p in whole.teacher.parameters()]

    def save() -> None:
        if whole.step == 2:
            save_resume(saved, whole.state_dict())

    assert whole.run(lines.append, save, lambda: False)
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert all(p.dtype == torch.float32 for p in whole.teacher.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(begun, whole.teacher.parameters(), strict=True)]
    if name in RELEASED:
        assert sum(moved) == sum(p.requires_grad for p in whole.student.parameters())  # all but the fixed gain

    resumed, again = trainer_of(name, stream), []
    resumed.load_state_dict(load_resume(saved))
    assert resumed.run(again.append, lambda: None, lambda: False)
    assert [line["loss"] for line in again] == [line["loss"] for line in lines[2:]]
    expected = whole.state_dict()["teacher"]
    assert all(torch.equal(v, expected[k]) for k, v in resumed.state_dict()["teacher"].items())

    save_combined(tmp_path / "weights.pth", whole.teacher.backbone, whole.teacher.proj_head)
    backbone = build_backbone(name)
    head = proj_head(backbone.num_features)
    load_combined(tmp_path / "weights.pth", backbone, head)
    for ours, theirs in ((backbone, whole.teacher.backbone), (head, whole.teacher.proj_head)):
        expected = theirs.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in ours.state_dict().items())
    crops = torch.randn(2, 1, *whole.config.views.global_size)
    with torch.no_grad():  # other memory formats round differently
        torch.testing.assert_close(backbone.eval()(crops), whole.teacher.backbone.eval()(crops), rtol=1e-3, atol=1e-4)


def test_views_too_narrow_for_bf16_on_a_cpu_are_refused():
    backbone = build_backbone("mambaout_femto")
    check_width_for_bf16(backbone, "mambaout_femto", (64, 48))
    with pytest.raises(BackboneError, match="views of 8x8 px to a width of 1"):
        check_width_for_bf16(backbone, "mambaout_femto", (8, 8))
    assert backbone.training
    assert not any(module._forward_pre_hooks for module in backbone.modules())


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "starnet_s4", *released(fast=("starnet_s4",), slow=("vit",))],
)
def test_blocks_computed_again_give_the_same_gradients_and_keep_less(name):
    """Gradient checkpointing, with the sum of two crop sizes in one step, as runs have."""

    def trained(again):
        torch.manual_seed(0)
        backbone = build_backbone(name).train()
        if again:
            backbone.checkpoint_gradients(name)
        kept = {}  # storages, which stay alive until the backward pass
        note = lambda tensor: (kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.nbytes), tensor)[1]  # noqa: E731
        with saved_tensors_hooks(note, lambda tensor: tensor):
            features = [backbone(torch.randn(4, 1, *size)) for size in ((96, 64), (64, 64))]
        sum(f.square().sum() for f in features).backward()
        return {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}, sum(kept.values())

    (plain, all_kept), (again, kept) = trained(False), trained(True)
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max() + 1))
    assert kept < 0.9 * all_kept


def test_a_backbone_that_cannot_compute_its_blocks_again_says_so():
    with pytest.raises(BackboneError, match="gradient_checkpointing false"):
        build_backbone("hrnet_w18_small").checkpoint_gradients("hrnet_w18_small")
