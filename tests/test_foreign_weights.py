"""Backbones without a head, as other programs store them: what they compute stays, on gray images of our scaling."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from augment.config import ViewConfig
from pretrain.checkpoints.combined import load_combined
from pretrain.checkpoints.foreign_weights import fill_foreign, likely_backbone, read_any
from pretrain.checkpoints.init_weights import read_initial, start_from, starting_backbone
from pretrain.checkpoints.weights_io import CheckpointError
from pretrain.config.auto import resolved
from pretrain.config.schema import Config, DataConfig
from pretrain.method.step_rates import rates_at
from pretrain.models.backbones import build_backbone
from pretrain.models.student_teacher import build_networks

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALING = 0.5, 0.25
MODELS = ["tf_efficientnet_lite0", "resnet18", "convnext_atto", "vit_tiny_patch16_224", "mambaout_femto", "test_resnet"]


def trained(name: str, seed: int = 0) -> torch.nn.Module:
    """A model of random weights whose BatchNorm has statistics, as a trained one has."""
    torch.manual_seed(seed)
    model = timm.create_model(name, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def gray(height: int = 224, width: int = 224) -> torch.Tensor:
    """Two smooth random images [2, 1, H, W] in [0, 1]."""
    return torch.nn.functional.interpolate(torch.rand(2, 1, 28, 28), (height, width), mode="bilinear")


def source_maps(model: torch.nn.Module, images: torch.Tensor, mean=None, std=None) -> torch.Tensor:
    """The last feature map of the network on the RGB image with its own normalisation."""
    mean, std = mean or model.pretrained_cfg["mean"], std or model.pretrained_cfg["std"]
    rgb = (images.expand(-1, 3, -1, -1) - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    taken = model.forward_intermediates(rgb, intermediates_only=True, norm=False)
    return taken[-1]


def loaded(path, name: str):
    backbone = build_backbone(name).eval()
    note = fill_foreign(read_any(path, backbone=name), backbone, name, *SCALING)
    return backbone, note


def our_maps(backbone, images: torch.Tensor) -> torch.Tensor:
    return backbone.feature_map((images - SCALING[0]) / SCALING[1])


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_gray_images_give_what_the_network_gives_on_rgb(name, tmp_path):
    """Exact where the mean is ours or nothing is padded; else but for the zeros around the image."""
    model, images = trained(name), gray()
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    for mean, std in ((None, None), ((0.5,) * 3, (0.2, 0.3, 0.4))):
        if mean:
            config = {"architecture": name, "pretrained_cfg": {"mean": mean, "std": std}}
            (tmp_path / "config.json").write_text(json.dumps(config))
        backbone, note = loaded(path, name)
        theirs, ours = source_maps(model, images, mean, std), our_maps(backbone, images)
        same_mean = set(mean or model.pretrained_cfg["mean"]) == {0.5}
        exact = same_mean or "vit" in name
        error = float((ours - theirs).norm() / theirs.norm())
        assert error < (1e-4 if exact else 0.1), note
        assert "3 channels folded to one" in note
        assert ("stated beside it" if mean else f"timm's for {name}") in note


@torch.no_grad()
def test_only_the_padded_border_of_a_stem_differs_and_only_by_the_difference_of_the_means(tmp_path):
    model, images = trained("resnet18"), gray(64, 48)
    torch.save(model.state_dict(), path := tmp_path / "resnet18.pth")
    backbone, _ = loaded(path, "resnet18")
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in IMAGENET)
    theirs = model.bn1(model.conv1((images.expand(-1, 3, -1, -1) - mean) / std))
    ours = backbone.m.bn1(backbone.m.conv1((images - 0.5) / 0.25))
    difference = (ours - theirs).abs()
    assert difference[..., 2:-2, 2:-2].max() < 1e-4  # a kernel of 7 with stride 2 meets 3 zeros
    assert difference.max() > 1e-3


def wrapped(form: str, state: dict[str, torch.Tensor], folder: Path) -> Path:
    """`state` in a file as another program writes it, with the other network or a head beside it."""
    other = {key: torch.randn_like(t) if t.is_floating_point() else t for key, t in state.items()}
    under = lambda prefix, tensors: {prefix + key: tensor for key, tensor in tensors.items()}  # noqa: E731
    head = {"head.mlp.0.weight": torch.ones(3, 4)}
    forms = {
        "plain": state,
        "model": {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 3},
        "dino": {"student": under("module.backbone.", other) | head, "teacher": under("backbone.", state) | head},
        "dinov2": {"teacher": under("backbone.", state) | under("dino_head.", head)},
        "lightning": {
            "state_dict": under("model.backbone.", state) | {"model.head.weight": torch.ones(2, 2)},
            "hyper_parameters": {"lr": 0.1},
        },
        "lightly-train": {
            "state_dict": under("teacher_embedding_model.wrapped_model._model.", state)
            | under("student_embedding_model.wrapped_model._model.", other)
        },
        "ddp": under("module.", state),
    }
    if form == "safetensors":
        save_file(state, path := folder / "model.safetensors")
    else:
        torch.save(forms[form], path := folder / "checkpoint.pth")
    return path


FORMS = ["plain", "model", "dino", "dinov2", "lightning", "lightly-train", "ddp", "safetensors"]


@pytest.mark.parametrize("form", FORMS)
def test_both_networks_of_a_run_start_from_any_form_with_a_new_head(form, tmp_path):
    """At step 0 every weight is the file's, and not the seed's."""
    source = trained("test_resnet").state_dict()
    path = str(wrapped(form, source, tmp_path))
    config = Config(backbone="test_resnet", init=path, steps=10)
    student, teacher = build_networks(config)
    random = {key: tensor.clone() for key, tensor in student.state_dict().items()}
    said = start_from(initial := read_initial(path, config.backbone), config, student, teacher)
    for network in (student, teacher):
        state = network.state_dict()
        matched = [(key, place) for key in source if (place := _place(key, state))]
        stems = [place for key, place in matched if source[key].ndim == 4 and source[key].shape[1] == 3]
        assert len(stems) == 1
        for key, place in matched:
            assert place in stems or torch.equal(state[place], source[key]), key
        assert {place for _, place in matched} == {key for key in state if key.startswith("backbone.")}
        assert all(torch.equal(state[key], random[key]) for key in state if key.startswith("proj_head."))
        assert not torch.equal(state[stems[0]], random[stems[0]])
    assert "3 channels folded to one" in said
    assert "left out" in said
    assert "the head is new" in said
    assert initial.prototypes is None
    assert resolved(config, 8000, "cpu", 1)[0].optim.init_freeze == 0.15
    assert resolved(config, 8000, "cpu", 1, head=256)[0].optim.init_freeze == 0.05
    kept = starting_backbone(config, initial.checksum, lambda: pytest.fail("statistics are the file's"))
    assert all(torch.equal(kept.state_dict()[k], t) for k, t in student.backbone.state_dict().items())


def _place(key: str, state) -> str | None:
    """Where a timm key lies in the state of a network."""
    parts = key.split(".")
    joined = ["_".join(parts[:i]) + "." + ".".join(parts[i:]) for i in range(1, len(parts))]
    return next((f"backbone.m.{name}" for name in joined if f"backbone.m.{name}" in state), None)


@torch.no_grad()
def test_torchvision_is_read_and_says_what_it_left_out(tmp_path):
    model = torchvision.models.resnet18()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    torch.save(model.state_dict(), path := tmp_path / "resnet18-f37072fd.pth")
    backbone, note = loaded(path, "resnet18")
    assert "left out 2 (fc.weight, fc.bias)" in note
    assert "mean and std 0.485/0.456/0.406 and 0.229/0.224/0.225 (timm's for resnet18) moved to 0.5 and 0.25" in note
    assert torch.equal(backbone.m.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
    assert likely_backbone(read_any(path)) == "resnet18"


@torch.no_grad()
def test_names_of_another_program_are_read_in_order_where_every_shape_fits(tmp_path):
    model, images = trained("tf_efficientnet_lite0"), gray(64, 48)
    renamed = {f"_layer{i}.x": tensor for i, tensor in enumerate(model.state_dict().values())}
    torch.save(renamed, path := tmp_path / "lite.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        loaded(path, "tf_efficientnet_lite1")
    named = {f"_conv{i}.{k.rpartition('.')[2]}": t for i, (k, t) in enumerate(model.state_dict().items())}
    torch.save(named, path)
    backbone, note = loaded(path, "tf_efficientnet_lite0")
    assert "in order (no name fits, every shape does)" in note
    assert torch.allclose(our_maps(backbone, images), source_maps(model, images), atol=1e-3)


@torch.no_grad()
def test_a_position_embedding_of_another_grid_is_resampled(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=128)
    torch.save({"teacher": {f"backbone.{k}": t for k, t in model.state_dict().items()}}, path := tmp_path / "vit.pth")
    backbone, note = loaded(path, "vit_tiny_patch16_224")
    assert "pos_embed resampled" in note
    assert "'teacher.backbone.' removed from keys" in note
    theirs, ours = (model.pos_embed[0, 1:].view(8, 8, -1), backbone.m.model.pos_embed[0, 1:].view(14, 14, -1))
    assert torch.allclose(theirs.mean((0, 1)), ours.mean((0, 1)), atol=0.01)


def test_what_does_not_fit_names_first_keys_and_the_likely_backbone(tmp_path):
    torch.save(trained("test_resnet").state_dict(), path := tmp_path / "test_resnet-1234.pth")
    with pytest.raises(CheckpointError) as raised:
        loaded(path, "resnet18")
    said = str(raised.value)
    assert "missing" in said
    assert said.endswith("give --backbone test_resnet")
    assert "\n" not in said
    with pytest.raises(CheckpointError):
        load_combined(path)


def test_a_pickle_of_classes_is_not_opened(tmp_path):
    state = trained("test_resnet").state_dict()
    torch.save({"state_dict": state, "hyper_parameters": Path("x")}, path := tmp_path / "lightning.ckpt")
    with pytest.raises(CheckpointError, match=r"could run code, so it was not opened; save state dicts alone"):
        read_any(path)


def test_timm_gives_the_weights_of_the_backbone_or_of_a_name(monkeypatch):
    model, asked, create = trained("test_resnet"), [], timm.create_model

    def stand_in(name, pretrained=False, **options):
        if pretrained:
            asked.append(name)
        return model if pretrained else create(name, **options)

    monkeypatch.setattr(timm, "create_model", stand_in)
    config = Config(backbone="test_resnet", init="timm", steps=10)
    for source in ("timm", "timm:test_resnet.r160_in1k"):
        student, teacher = build_networks(config)
        said = start_from(read_initial(source, config.backbone), config, student, teacher)
        assert torch.equal(student.backbone.m.state_dict()["layer4.0.conv1.weight"], model.layer4[0].conv1.weight)
        assert "stated by timm" in said
    assert asked == ["test_resnet", "test_resnet.r160_in1k"]


def test_a_start_that_timm_no_longer_gives_is_not_scored(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert starting_backbone(Config(backbone="resnet18", init="timm"), "0123456789ab", lambda: None) is None


def test_no_hub_is_one_line_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"download model\.safetensors of .* elsewhere and give that file"
    ) as raised:
        read_any("timm", backbone="test_resnet.r160_in1k")
    assert "\n" not in str(raised.value)


def test_a_long_head_only_phase_keeps_the_backbone_where_the_head_is_new():
    config = Config(init="somewhere", steps=100, data=DataConfig(batch_size=8), views=ViewConfig())
    config, said = resolved(config, 8000, "cpu", 1)
    assert "optim.init_freeze 0.15" in said
    rates = [rates_at(config, step, 100).backbone_lr for step in range(20)]
    assert rates[:15] == [0] * 15
    assert rates[16] > 0
