"""The published files by name, size and checksum, and the release's own way of using them."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from released import released
from torch import nn

from downstream import released_files
from downstream.__main__ import main
from pretrain import build_backbone, proj_head, save_combined
from pretrain.config.released_backbones import RELEASED

README = Path(__file__).parent.parent.parent / "shared" / "released-readme.md"
"""The release's README, where it lies beside the checkout: its very blocks are run then."""


def test_every_released_checkpoint_is_listed_once(capsys):
    assert len(released_files.CHECKPOINTS) == 16
    assert {p.backbone for p in released_files.CHECKPOINTS.values()} == set(RELEASED)
    assert all(p.megabytes == RELEASED[p.backbone].megabytes for p in released_files.CHECKPOINTS.values())
    checksums = [md5 for p in released_files.FILES.values() for md5 in p.md5]
    assert len(set(checksums)) == len(checksums) == 16 + 6 + 2
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in checksums)
    assert {p.name for p in released_files.FILES.values() if len(p.md5) == 2} == {
        n for n in released_files.FILES if n.startswith("0_")
    }
    assert {p.mix for p in released_files.CHECKPOINTS.values()} == {"public", "internal", "combined"}
    main(["zoo", "list"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in released_files.FILES)
    assert all(md5 in shown for md5 in checksums)
    assert released_files.DOI in shown


# The release's README is not ours to commit; the same facts stand in zoo.FILES, which the tests below use everywhere.
@pytest.mark.skipif(not README.is_file(), reason="the release's README does not lie beside this checkout")
def test_sizes_and_checksums_are_those_of_the_releases_readme():
    rows = re.findall(r"- [`*]+([^`*]+\.(?:pth|7z))[`*]+ — \*([\d.]+) MB\*, `md5: (\w+)`", README.read_text())
    assert len(rows) == 18
    assert rows == [
        (p.name, f"{p.megabytes:.2f}", p.md5[0]) for name, _, _ in rows for p in [released_files.FILES[name]]
    ]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Two circulating versions of a published file, of 0.3 MB here; the real ones cannot be fetched by a test."""
    versions = [bytes([i]) * 300_000 for i in (1, 2)]
    checksums = tuple(hashlib.md5(v).hexdigest() for v in versions)
    name = "0_vit_public_ssl.pth"
    monkeypatch.setitem(released_files.FILES, name, released_files.FILES[name]._replace(megabytes=0.3, md5=checksums))
    return name, versions


@pytest.mark.parametrize("called", ["0_vit_public_ssl.pth", "0_vit_public_ssl (1).pth", "renamed.pth"])
def test_a_published_file_is_known_whatever_it_is_called(called, published, tmp_path, capsys):
    _, versions = published
    for version, said in zip(versions, ("first set", "second set"), strict=True):
        (tmp_path / called).write_bytes(version)
        main(["zoo", "verify", str(tmp_path / called)])
        line = capsys.readouterr().out
        for words in ("0_vit_public_ssl.pth of the release", "vit, public data", said, released_files.DOI):
            assert words in line


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_wrong_checksum_under_a_known_name_is_an_error(published, tmp_path, capsys):
    name, versions = published
    path = tmp_path / name
    path.write_bytes(versions[0][:-1] + b"x")
    (tmp_path / "own.pth").write_bytes(b"mine")
    said = refused(capsys, "zoo", "verify", path, tmp_path / "own.pth", tmp_path / "absent.pth")
    for words in (
        "3 of 3",
        name,
        "not what its name says",
        released_files.DOI,
        "own.pth is none of the published",
        "absent.pth",
    ):
        assert words in said
    backbone = build_backbone("ghostnetv3")
    save_combined(path, backbone, proj_head(160))  # a readable file does not help
    said = refused(capsys, "embed", "--checkpoint", path, "--shards", tmp_path, "--out", tmp_path / "o")
    assert "not what its name says" in said
    assert "0_vit" in refused(capsys, "zoo", "verify", path)
    for arguments in (["zoo"], ["zoo", "verify"], ["zoo", "fetch"]):
        assert "zoo list" in refused(capsys, *arguments)


def release_batches(size, classes=2):
    return [(torch.rand(2, 1, *size), torch.arange(2) % classes)]


def own_words(name, size, path):
    """What the release's blocks A, B and C do, call by call: build, load both parts without a check, fine-tune."""
    import pretrain.backbones

    backbone = getattr(pretrain.backbones, name)()
    with torch.no_grad():
        width = backbone(torch.zeros(1, 1, *size)).shape[1]
    head = proj_head(in_dim=width)
    content = torch.load(path, map_location="cpu")
    assert set(content) == {"backbone", "proj_head"}
    for module, part in ((backbone, "backbone"), (head, "proj_head")):
        result = module.load_state_dict(content[part], strict=False)
        assert not result.missing_keys
        assert not result.unexpected_keys
    classifier = nn.Linear(width, 2)
    model = nn.Sequential(backbone, classifier)
    for parameter in model.parameters():
        parameter.requires_grad = True
    optimizer = torch.optim.AdamW(
        [{"params": backbone.parameters(), "lr": 1e-4}, {"params": classifier.parameters(), "lr": 1e-3}]
    )
    model.train()
    for images, labels in release_batches(size):
        loss = nn.CrossEntropyLoss()(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return backbone, head, loss.item()


@pytest.mark.parametrize(
    "name",
    [
        *released(fast=("mambaout_femto",), values=lambda name: (RELEASED[name].class_name,)),
        pytest.param("ViTBackbone", marks=pytest.mark.slow),
    ],
)
def test_the_releases_way_of_using_its_files_works_on_ours(name, tmp_path):
    size = (320, 240)
    torch.manual_seed(1)
    ours = build_backbone(name)
    head = proj_head(ours.num_features)
    save_combined(tmp_path / "w.pth", ours, head)
    _, _, loss = own_words(name, size, tmp_path / "w.pth")
    assert loss == loss  # not NaN


# As above; the same calls in our own words run without it: one backbone always, all 12 with -m extended.
@pytest.mark.slow
@pytest.mark.skipif(not README.is_file(), reason="the release's README does not lie beside this checkout")
def test_the_releases_blocks_run_with_only_their_imports_changed(tmp_path, monkeypatch):
    """Blocks A, B and C as they stand there, in one session, on a checkpoint that is written here."""
    blocks = re.findall(r"### [ABC]\).*?```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 3
    changed = [
        block.replace("from backbone_list import", "from pretrain.backbones import").replace(
            "from proj_head import", "from pretrain import"
        )
        for block in blocks
    ]
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    ours = build_backbone("vit")
    head = proj_head(384)
    save_combined("0_vit_combined_ssl.pth", ours, head)
    session: dict[str, object] = {"dataloader": release_batches((400, 304))}
    exec(changed[0], session)
    for loaded, wanted in ((session["backbone"], ours), (session["head"], head)):
        assert isinstance(loaded, nn.Module)
        assert all(torch.equal(a, wanted.state_dict()[k]) for k, a in loaded.state_dict().items())
    exec(changed[1], session)
    assert session["C"] == 768
    exec(changed[2], session)
    assert SimpleNamespace(**session).loss.item() > 0
