"""The script that everyone writes first, for `pack.py` to run against: zipfile, Pillow, `webdataset.ShardWriter`.

    python benchmarks/plain_pack.py ARCHIVE.zip OUT PIXEL_ASPECT

Boxes are YOLO text in `labels/` beside `images/`, or a `boxes.csv` in pixels; each gets the margin that pack gives.
"""

import csv
import io
import math
import sys
import zipfile
from pathlib import Path

import webdataset
from PIL import Image

MARGIN = 0.05


def boxes_in(archive: zipfile.ZipFile) -> dict[str, list[tuple[float, float, float, float, str]]]:
    """x0, y0, x1, y1, label by image; shares of the image for YOLO, pixels for CSV."""
    boxes: dict[str, list[tuple[float, float, float, float, str]]] = {}
    for name in archive.namelist():
        if name.endswith("boxes.csv"):
            for row in csv.DictReader(io.TextIOWrapper(archive.open(name))):
                x0, y0, x1, y1 = (float(row[key]) for key in ("x0", "y0", "x1", "y1"))
                boxes.setdefault(row["image"], []).append((x0, y0, x1, y1, row["fdi"]))
        elif "/labels/" in name:
            image = name.replace("/labels/", "/images/").replace(".txt", ".jpg")
            for line in archive.read(name).decode().splitlines():
                if len(fields := line.split()) == 5:
                    cx, cy, w, h = map(float, fields[1:])
                    box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, fields[0])
                    boxes.setdefault(image, []).append(box)
    return boxes


def main(source: str, out: str, pixel_aspect: float) -> None:
    Path(out).mkdir(parents=True)
    with zipfile.ZipFile(source) as archive, webdataset.ShardWriter(f"{out}/shard-%06d.tar", verbose=0) as shards:
        boxes = boxes_in(archive)
        for name in archive.namelist():
            if name not in boxes:
                continue
            image = Image.open(archive.open(name)).convert("L")
            for number, (x0, y0, x1, y1, label) in enumerate(boxes[name]):
                if "/images/" in name:
                    x0, y0, x1, y1 = x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height
                dx, dy = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
                left, top = max(0, math.floor(x0 - dx)), max(0, math.floor(y0 - dy))
                right, bottom = min(image.width, math.ceil(x1 + dx)), min(image.height, math.ceil(y1 + dy))
                crop = image.crop((left, top, right, bottom))
                if pixel_aspect != 1:
                    crop = crop.resize((round(crop.width * pixel_aspect), crop.height), Image.Resampling.BICUBIC)
                key = f"{Path(name).stem.replace('.', '-')}-{number:02d}"
                shards.write({"__key__": key, "png": crop, "json": {"label": label, "box": [x0, y0, x1, y1]}})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
