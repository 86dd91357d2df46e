"""Small archives for the tests of annotations: radiographs with four teeth, and the command run in this process."""

import io
import json
import tarfile
import zipfile

import numpy as np
from PIL import Image

from data_shards.__main__ import main

WIDTH, HEIGHT = 210, 150


def teeth(seed):
    """Boxes of four teeth in pixels: x0, y0, x1, y1."""
    rng = np.random.default_rng(seed)
    starts = [(8 + 50 * n + int(rng.integers(0, 6)), 20 + int(rng.integers(0, 15))) for n in range(4)]
    return [(x, y, x + 30 + int(rng.integers(0, 10)), y + 75 + int(rng.integers(0, 25))) for x, y in starts]


def radiograph(seed):
    rng = np.random.default_rng(1000 + seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.clip(90 + 40 * np.sin(x / 17 + seed) + 20 * np.cos(y / 13) + rng.normal(0, 9, x.shape), 0, 255).astype(
        np.uint8
    )


def saved(pixels, kind="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def scan(seed):
    return saved(radiograph(seed))


def share(box):
    x0, y0, x1, y1 = box
    return (x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT


def coco(names, seeds, category=1, name="36", id_=1):
    rows = [
        {"id": 9 * i + k, "image_id": i, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for i, seed in enumerate(seeds)
        for k, (x0, y0, x1, y1) in enumerate(teeth(seed))
    ]
    images = [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in enumerate(names)]
    return json.dumps({"images": images, "annotations": rows, "categories": [{"id": id_, "name": name}]})


def mask(seed, only=None, values=(255,) * 4):
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for k, (x0, y0, x1, y1) in enumerate(teeth(seed)):
        if only in (None, k):
            pixels[y0:y1, x0:x1] = values[k]
    return pixels


def packed(folder, members, capsys, *options):
    """What `pack` makes of an archive of these members: exit code, samples' JSON, and all that is said."""
    archive, out = folder / "a.zip", folder / "out"
    (folder / "key").write_text("a key of the tests, so that ids and holdouts are the same in every run")
    with zipfile.ZipFile(archive, "w") as writer:
        for name, content in members.items():
            writer.writestr(name, content)
    code = 0
    try:
        main(["pack", str(archive), "--out", str(out), "--key", str(folder / "key"), *options])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, samples_in(out), captured.out + captured.err


def samples_in(out):
    found = []
    for shard in sorted(out.glob("shard-*.tar")):
        with tarfile.open(shard) as tar:
            found += [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
    return found


def assert_teeth(samples, seeds, **labels):
    """Each tooth of these radiographs is one crop, on its box and with these labels."""
    expected = sorted(box for seed in seeds for box in teeth(seed))
    boxes = sorted(tuple(sample["box"]) for sample in samples)
    assert len(boxes) == len(expected)
    assert np.abs(np.subtract(boxes, expected)).max() <= 1.5
    for name, value in labels.items():
        assert {sample.get(name) for sample in samples} == {value}
