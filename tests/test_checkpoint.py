"""The released format, key for key, and resume files that cannot lie."""

import json
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file as save_safetensors
from torch import nn

import pretrain
from pretrain.checkpoints.combined import MismatchError, load_combined, read_combined, save_combined
from pretrain.checkpoints.metadata import weights_facts
from pretrain.checkpoints.weights_io import CheckpointError, load_resume, save_resume
from pretrain.config.released_backbones import RELEASED
from pretrain.config.schema import Config
from pretrain.models.backbones import BackboneError, build_backbone, check_view_size
from pretrain.models.projection_head import proj_head

HEAD_KEYS = [
    "mlp.0.weight",
    *(f"mlp.2.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    "mlp.3.weight",
    *(f"mlp.5.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    "last_layer.weight_g",
    "last_layer.weight_v",
]


def small(seed: int = 0):
    torch.manual_seed(seed)
    backbone = build_backbone("ghostnetv3")  # the smallest of the 12
    return backbone, proj_head(backbone.num_features)


def test_head_has_the_released_keys():
    assert list(proj_head(16).state_dict()) == HEAD_KEYS


def test_saved_file_is_the_combined_format(tmp_path):
    backbone, head = small()
    save_combined(tmp_path / "x.pth", backbone.to(memory_format=torch.channels_last), head)
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    assert list(content) == ["backbone", "proj_head"]
    assert all(k.startswith("m.") for k in content["backbone"])
    assert list(content["proj_head"]) == HEAD_KEYS
    assert all(v.is_contiguous() for part in content.values() for v in part.values())
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("ghostnetv3", "fastvit_t8") else pytest.mark.slow) for n in RELEASED]
)
def test_file_size_is_the_published_one(name, tmp_path):
    release = RELEASED[name]
    backbone = build_backbone(name)
    assert backbone.num_features == release.channels
    for stem in release.checkpoints:
        path = tmp_path / f"{stem}.pth"
        save_combined(path, backbone, proj_head(release.channels))
        assert path.stat().st_size / 1e6 == pytest.approx(release.megabytes, abs=0.01)


class Both(nn.Module):
    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.proj_head = backbone, head


def saved_as(form, path, backbone, head):
    """A checkpoint as other programs leave it, made by the wrappers and writers that they use."""
    nested = {"backbone": backbone.state_dict(), "proj_head": head.state_dict()}
    flat = Both(backbone, head).state_dict()
    if form.startswith("nested"):
        content = nested
    elif form.startswith("flat"):
        content = flat
    elif form == "of DataParallel":
        content = nn.DataParallel(Both(backbone, head)).state_dict()
    elif form == "compiled":
        content = torch.compile(Both(backbone, head)).state_dict()
    elif form == "compiled in DataParallel, in state_dict":
        content = nn.DataParallel(torch.compile(Both(backbone, head))).state_dict()
    elif form == "parts compiled":
        content = Both(torch.compile(backbone), nn.DataParallel(head)).state_dict()
    elif form == "nested parts wrapped":
        content = {
            "backbone": nn.DataParallel(torch.compile(backbone)).state_dict(),
            "proj_head": torch.compile(head).state_dict(),
        }
    elif form == "safetensors":
        save_safetensors({k: v.contiguous() for k, v in flat.items()}, path)
        return
    elif form.startswith("resume"):
        other, other_head = small(9)
        rest = Both(other, other_head).state_dict()
        teacher, student = (flat, rest) if form == "resume, teacher" else (rest, flat)
        identity = json.dumps({"backbone": "ghostnetv3", "views.global_size": [64, 48], "mean": 0.4, "std": 0.2})
        save_resume(path, {"step": 3, "teacher": teacher, "student": student, "identity": identity})
        return
    else:
        raise AssertionError(form)
    torch.save({"state_dict": content} if form.endswith("in state_dict") else content, path)


FORMS = [
    *("nested", "flat", "nested in state_dict", "flat in state_dict", "of DataParallel", "compiled", "safetensors"),
    *("compiled in DataParallel, in state_dict", "parts compiled", "resume, teacher", "resume, student"),
]


def assert_same(one, other):
    for (k, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), k


@pytest.mark.parametrize("form", [*FORMS, "nested parts wrapped"])
def test_every_form_loads_and_says_so(form, tmp_path):
    backbone, head = small(1)
    saved_as(form, tmp_path / "w.any", backbone, head)
    network = "student" if form == "resume, student" else "teacher"
    other, other_head = small(2)
    report = load_combined(tmp_path / "w.any", other, other_head, network)
    assert_same(other, backbone)
    assert_same(other_head, head)
    keys = list(Both(backbone, head).state_dict())
    assert (report.loaded, report.ignored) == (keys, [])
    assert f"{len(keys)} tensors loaded" in str(report)

    built = load_combined(tmp_path / "w.any", network=network)  # the backbone by its keys, the head by its widths
    assert built.name == "ghostnetv3"
    assert_same(built.backbone, backbone)
    assert_same(built.head, head)

    alone = load_combined(tmp_path / "w.any", small(3)[0], network=network)
    assert sorted(alone.ignored) == sorted(f"proj_head.{k}" for k in HEAD_KEYS)
    assert f"{len(HEAD_KEYS)} of the head ignored" in str(alone)


@pytest.mark.parametrize(("widths", "layers"), [((64, 32, 48), 3), ((1024, 512, 256), 4), ((8, 1, 24), 2)])
def test_a_head_of_other_widths_is_built_as_stored(widths, layers, tmp_path):
    out, hidden, bottleneck = widths
    head = proj_head(160, out, hidden, bottleneck, layers)
    save_combined(tmp_path / "w.pth", small()[0], head)
    assert_same(load_combined(tmp_path / "w.pth").head, head)


def test_only_a_resume_file_has_a_student(tmp_path):
    save_combined(tmp_path / "w.pth", *small())
    with pytest.raises(CheckpointError, match="holds no student"):
        load_combined(tmp_path / "w.pth", network="student")


def test_keys_that_a_wrapper_alone_tells_apart_are_refused(tmp_path):
    flat = Both(*small()).state_dict()
    torch.save(flat | {f"module.{k}": v for k, v in flat.items()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="the same without their wrappers"):
        read_combined(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["fastvit_t8", pytest.param("vit", marks=pytest.mark.slow)])
def test_a_mismatch_names_the_backbone_that_fits(name, tmp_path):
    backbone = build_backbone(name)
    save_combined(tmp_path / "w.pth", backbone, proj_head(backbone.num_features))
    with pytest.raises(MismatchError, match=f"it is of backbone '{name}'"):
        load_combined(tmp_path / "w.pth", small()[0])


def test_a_backbone_that_is_no_release_is_not_guessed(tmp_path):
    whole = small()[0].state_dict()
    alike = dict(list(whole.items())[: 7 * len(whole) // 10])  # of the same family, perhaps
    torch.save({"backbone": alike, "proj_head": small()[1].state_dict()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"closest is ghostnetv3, with (69|70) % of the keys"):
        load_combined(tmp_path / "w.pth")
    other = build_backbone("resnet10t")
    save_combined(tmp_path / "w.pth", other, proj_head(512))
    with pytest.raises(CheckpointError, match="none of the released backbones"):
        load_combined(tmp_path / "w.pth")


@pytest.mark.parametrize("damage", ["torn", "header", "shape"])
def test_damaged_safetensors_are_refused_in_one_line(damage, tmp_path):
    saved_as("safetensors", tmp_path / "w.safetensors", *small())
    raw = (tmp_path / "w.safetensors").read_bytes()
    damaged = {
        "torn": raw[: len(raw) // 2],
        "header": raw[:9] + b"\0" * 20 + raw[29:],
        "shape": raw.replace(b'"shape":[1]', b'"shape":[7]', 1).replace(b'"shape":[256,1]', b'"shape":[256,2]', 1),
    }
    (tmp_path / "w.safetensors").write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        read_combined(tmp_path / "w.safetensors")


def test_mismatch_lists_missing_unexpected_and_reshaped_keys_and_changes_nothing(tmp_path):
    backbone, head = small()
    state = backbone.state_dict()
    first, second, *_ = state
    state["m.invented"] = state.pop(first)
    state[second] = torch.zeros(3, 3)
    torch.save({"backbone": state, "proj_head": head.state_dict()}, tmp_path / "w.pth")
    target, _ = small(3)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(MismatchError) as error:
        load_combined(tmp_path / "w.pth", target)
    assert error.value.missing == [f"backbone.{first}"]
    assert error.value.unexpected == ["backbone.m.invented"]
    assert len(error.value.loaded) == len(state) - 2
    for words in ("1 missing", first, "1 unexpected", "m.invented", "1 reshaped", second, "(3, 3)"):
        assert words in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


@pytest.mark.parametrize(
    "content", [3, [1], {1: 2}, {"backbone": {}}, {"backbone": {"m.a": 1.0}, "proj_head": {"mlp": torch.zeros(1)}}]
)
def test_other_contents_are_refused_in_one_line(content, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="combined checkpoint"):
        read_combined(tmp_path / "w.pth")


def test_hostile_pickle_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"backbone": Bomb()}))
    torch.save({"backbone": Bomb()}, tmp_path / "zipped.pth")
    for name, asked in (("bomb.pth", "something else"), ("zipped.pth", r"_?io\.open")):
        with pytest.raises(CheckpointError, match=f"{asked}.* was not opened") as refused:
            read_combined(tmp_path / name)
        assert "weights_only" not in str(refused.value)  # torch's own advice is to run it
    assert not (tmp_path / "harm").exists()


def test_a_page_or_weights_that_diverged_are_no_checkpoint(tmp_path):
    (tmp_path / "w.pth").write_text("<html>404 Not Found</html>")
    with pytest.raises(CheckpointError, match=r"no checkpoint .it begins with b'<html>404 No'"):
        load_combined(tmp_path / "w.pth")
    backbone = build_backbone("mambaout_femto")
    head = proj_head(backbone.num_features)
    with torch.no_grad():
        head.mlp[0].weight[3, 3] = torch.nan
    save_combined(tmp_path / "w.pth", backbone, head)
    with pytest.raises(CheckpointError, match=r"not finite in 1 of \d+ tensors \(proj_head.mlp.0.weight"):
        load_combined(tmp_path / "w.pth")
    load_combined(tmp_path / "w.pth", build_backbone("mambaout_femto"))  # the head is not asked for


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_a_pickle_that_is_none_is_refused_in_one_line(tmp_path_factory, noise):
    path = tmp_path_factory.getbasetemp() / "noise.pth"
    path.write_bytes(b"\x80\x02" + noise)
    with pytest.raises(CheckpointError):
        read_combined(path)


def test_a_flipped_bit_or_a_torn_file_is_noticed(tmp_path):
    path = tmp_path / "step-00000001.pth"
    save_resume(path, {"step": 1, "center": torch.randn(5000)})
    assert load_resume(path)["step"] == 1
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (bytes(flipped), whole[: len(whole) // 2], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_resume(path)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**31))
def test_any_flipped_bit_is_noticed_or_changes_nothing(resume_bytes, bit):
    """Dates and padding of the zip carry no meaning; everywhere else one bit must be told."""
    path, whole, state = resume_bytes
    assert_told_or_same(path, whole, bit % (8 * len(whole)), state)


def test_no_bit_of_the_zip_directory_escapes(resume_bytes):
    """A size made smaller there keeps zipfile from checking the CRC, the mark of a folder keeps torch from reading."""
    path, whole, state = resume_bytes
    for bit in range(8 * whole.index(b"PK\x01\x02"), 8 * len(whole)):
        assert_told_or_same(path, whole, bit, state)


def assert_told_or_same(path, whole, bit, state):
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
        loaded = load_resume(path)
    except CheckpointError:
        return
    assert loaded["step"] == state["step"]
    assert loaded["identity"] == state["identity"]
    assert torch.equal(loaded["center"], state["center"])


@pytest.fixture(scope="module")
def resume_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("bits") / "step-00000007.pth"
    state = {"step": 7, "identity": "of the run", "center": torch.randn(20)}
    save_resume(path, state)
    return path, path.read_bytes(), state


def test_names_resolve_in_every_spelling():
    import pretrain.backbones as room

    for release in RELEASED.values():
        built = getattr(room, release.class_name)
        assert issubclass(built, room.Backbone)
        assert built.__name__ == release.class_name
        with torch.device("meta"):
            assert built().num_features == release.channels
    assert room.ViTBackbone is room.ViT_backbone
    assert build_backbone("ghostnetv3_backbone").num_features == 160
    assert build_backbone("1_ghostnetv3_combined").num_features == 160
    assert build_backbone("resnet10t").num_features == 512  # any timm model with feature maps
    assert {"build_backbone", "proj_head", "load_combined", "save_combined"} <= set(pretrain.__all__)


def test_facts_name_the_timm_model_in_every_spelling():
    for spelling in ("vit", "ViTBackbone", "0_vit_public_ssl"):
        facts = weights_facts(Config(backbone=spelling), [], None, 384, "fp32", 0, 1, {}, {})
        assert facts["timm_name"] == "vit_small_patch16_rope_mixed_224.naver_in1k"
    assert weights_facts(Config(backbone="resnet10t"), [], None, 512, "fp32", 0, 1, {}, {})["timm_name"] == "resnet10t"


def test_errors_of_backbones_say_what_to_do():
    with pytest.raises(BackboneError, match=r"resnet50x.*released: vit"):
        build_backbone("resnet50x")
    with pytest.raises(BackboneError, match=r"16x16 px.*use larger views"):
        check_view_size(build_backbone("convnextv2"), "convnextv2", (16, 16))


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_every_released_backbone_gives_a_vector(name):
    backbone = build_backbone(name).eval()
    sizes = [(320, 240), (128, 96)] + [(400, 304)] * (name == "vit")
    for size in sizes:
        with torch.no_grad():
            assert backbone(torch.zeros(2, 1, *size)).shape == (2, RELEASED[name].channels)


ODD = {
    "meta": lambda w: w.to("meta"),
    "sparse": lambda w: w.to_sparse(),
    "complex": lambda w: w.to(torch.complex64),
    "quantised": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "whole": lambda w: w.to(torch.int8),
    "truth": lambda w: w.bool(),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_of_another_kind_are_refused(tmp_path, kind):
    backbone = build_backbone("mambaout_femto")
    save_combined(tmp_path / "w.pth", backbone, proj_head(backbone.num_features))
    content = torch.load(tmp_path / "w.pth", weights_only=True)
    key = next(key for key, value in content["backbone"].items() if value.ndim == 4)
    content["backbone"][key] = ODD[kind](content["backbone"][key])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates quantised tensors
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=r"plain tensors|quantised") as refused:
            load_combined(tmp_path / "w.pth")
    assert "\n" not in str(refused.value)


def test_lower_precision_is_said_and_damage_is_named(tmp_path):
    """A file with a released backbone's keys but for a few is that one, damaged."""
    backbone = build_backbone("mambaout_femto")
    save_combined(tmp_path / "w.pth", backbone, proj_head(backbone.num_features))
    whole = torch.load(tmp_path / "w.pth", weights_only=True)
    first = next(iter(whole["backbone"]))

    def saved(change):
        content = {part: dict(state) for part, state in whole.items()}
        change(content["backbone"])
        torch.save(content, tmp_path / "w.pth")
        return tmp_path / "w.pth"

    said = str(load_combined(saved(lambda state: state.update({first: state[first].half()}))))
    assert "(stored as float16), none missing" in said
    for kind, change in (
        ("missing", lambda state: state.pop(first)),
        ("unexpected", lambda state: state.update(extra=torch.zeros(3))),
        ("reshaped", lambda state: state.update({first: state[first].flatten()})),
    ):
        with pytest.raises(MismatchError, match=f"1 {kind}.*'mambaout_femto' but for these keys") as refused:
            load_combined(saved(change))
        assert len(getattr(refused.value, kind)) == 1


def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_combined(tmp_path / "w.pth")
