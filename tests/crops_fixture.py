"""Small real shards and checkpoints, and the commands that use them: for test_downstream.py and test_finetune.py."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from augment import fit
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.phantom.render import render_crop
from downstream.__main__ import main
from pretrain import build_backbone, proj_head, save_combined
from pretrain.models.batchnorm import calibrate_batchnorm

SIZE = (64, 48)
TINY = "test_resnet"  # of timm's own test models


def draw(rng, striped):
    """A crop of noise with fine stripes across, or blotches: two classes that any convolution tells apart."""
    noise = rng.normal(size=(64, 48))
    if striped:
        texture = 2 * np.sin(np.arange(64) * np.pi / 2 + rng.uniform(0, 7))[:, None] + 0.3 * noise
    else:
        texture = cv2.GaussianBlur(noise, (0, 0), 4) * 12
    return np.clip(128 + rng.uniform(-15, 15) + 40 * texture, 0, 255).astype(np.uint8)


def packed(folder, out):
    """Shards of 20 patients with 6 crops each, a third of the patients held out.

    `finding` is planted (stripes or not), `category` is a coin's, `severity` and `grade` are
    carried by half of the crops; all grades are one.
    """
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(20):
        for i in range(6):
            name = f"p{patient:02}-{i}.png"
            cv2.imwrite(str(folder / "images" / name), draw(rng, i % 3 == 0))
            row = {"image": name, "x0": 0, "y0": 0, "x1": 48, "y1": 64}
            row |= {"finding": "stripes" if i % 3 == 0 else "blotches"}
            rows.append(
                row
                | {
                    "category": rng.choice(["heads", "tails"]),
                    "grade": "one" if i < 3 else "",
                    "severity": "ab"[i % 2] if i < 3 else "",
                }
            )
    with (folder / "boxes.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    labels = ("finding", "category", "severity", "grade")  # whose words are no dental terms
    pack(PackConfig([folder], out, patient=r"p(\d+)-", key=b"0" * 32, holdout=0.3, margin=0, labels=labels, quiet=True))
    return out


def written(path, name=TINY, size=SIZE, seed=3):
    """A combined checkpoint of random weights at `path`, with the facts that matter beside it."""
    torch.manual_seed(seed)
    backbone = build_backbone(name)
    rng = np.random.default_rng(3)
    images = np.stack([fit(draw(rng, i % 3 == 0), size) for i in range(16)])
    calibrate_batchnorm(backbone, images, 0.4, 0.2, 16)  # buffers as after training
    save_combined(path, backbone, proj_head(backbone.num_features, 16))
    facts = {"backbone": name, "input": {"size": list(size), "mean": 0.4, "std": 0.2}}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


def lively(path, name, size):
    """A checkpoint in which nothing is 0 or tiny: fresh weights silence residual branches, which hides mistakes."""
    torch.manual_seed(3)
    backbone = build_backbone(name)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.numel() == max(parameter.shape):  # of a norm or a layer scale, or a bias
                parameter += 0.1 + 0.4 * torch.rand_like(parameter)
    images = np.stack([fit(render_crop(5, patient)[0], (320, 240)) for patient in range(8)])  # as true ones have seen
    calibrate_batchnorm(backbone, images, 0.4, 0.2, 8)  # of small ones features of large ones grow beyond float32
    save_combined(path, backbone, proj_head(backbone.num_features, 16))
    facts = {"backbone": name, "input": {"size": list(size), "mean": 0.4, "std": 0.2}}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


def run(command, checkpoint, out, *options):
    main([command, "--checkpoint", str(checkpoint), "--out", str(out), *map(str, options)])
    return json.loads((Path(out) / "metrics.json").read_text())


def mistake(capsys, *arguments):
    """The one line that a command ends with; exit 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    said = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert sum(line.startswith("error: ") for line in said) == 1
    assert "Traceback" not in "\n".join(said)
    return said[-1]
