"""Boxes and labels from every format of annotations, onto the right pixels and into the books."""

import io
import json
import os
import unicodedata
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from data_shards.annotations.box_plan import plan_boxes
from data_shards.annotations.boxes import Box, Boxes
from data_shards.annotations.choices import Choices
from data_shards.annotations.class_list import _class_list
from data_shards.annotations.formats.coco import _run_corners
from data_shards.decode.mask_parts import read_mask
from data_shards.errors import PackError
from data_shards.inspect.preview import preview
from data_shards.ledger import Ledgers
from data_shards.pack.crop import CropError
from data_shards.pack.orientation import place
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.pseudonyms import Key
from data_shards.shards.shard_set import ShardSet
from data_shards.sources import inventory
from data_shards.sources.inventory import Entry, Inventory, Masked, Text
from data_shards.sources.member import Member
from data_shards.sources.source import Source

KEY = Key(b"a public key for tests", None)
WIDTH, HEIGHT = 200, 120
TEETH = {"11": (20, 10, 60, 50), "36": (100, 30, 150, 110), "48": (160, 60, 199, 118)}
"""Boxes in whole pixels, by FDI number."""


def radiograph(seed=1, shape=(HEIGHT, WIDTH)):
    coarse = np.random.default_rng(seed).random((6, 10)).astype(np.float32)
    return (cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1) * 255).astype(np.uint8)


def saved(pixels, suffix="png", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, suffix, **options)
    return buffer.getvalue()


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def packed(source, out, **options):
    sources = [source] if isinstance(source, str | Path) else source
    return pack(PackConfig(sources, out, **{"key": KEY.secret, "quiet": True, "margin": 0.0, **options}))


def samples_of(out):
    samples = ShardSet(out)
    return [(samples.meta(i), samples.image(i)) for i in range(len(samples))]


def coco(teeth=TEETH, names=None, size=(WIDTH, HEIGHT), outline=None, file_name="x.png"):
    """As cocodataset.org's "Data format" has it."""
    names = names or list(teeth)
    annotations = []
    for number, (name, (x0, y0, x1, y1)) in enumerate(teeth.items()):
        entry = {"id": 7 * number, "image_id": 5, "category_id": 100 + names.index(name), "iscrowd": 0}
        entry |= outline(x0, y0, x1, y1) if outline else {"bbox": [x0, y0, x1 - x0, y1 - y0]}
        annotations.append(entry)
    return {
        "info": {"description": "[a] set"},
        "images": [{"id": 5, "file_name": file_name, "width": size[0], "height": size[1]}],
        "annotations": annotations,
        "categories": [{"id": 100 + n, "name": name} for n, name in enumerate(names)],
    }


def voc(teeth=TEETH, size=(WIDTH, HEIGHT), filename="x.png", head=""):
    objects = "".join(
        f"<object><name>{name}</name><pose>Left</pose><bndbox><ymin>{y0}</ymin><xmin>{x0}</xmin><xmax>{x1}</xmax>"
        f"<ymax>{float(y1)}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1) in teeth.items()
    )
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>1</depth></size>" if size else ""
    return f'<?xml version="1.0"?>\n{head}<annotation><filename>{filename}</filename>{sides}{objects}</annotation>'


def yolo(teeth=TEETH):
    rows = []
    for number, (x0, y0, x1, y1) in enumerate(teeth.values()):
        centre = (x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT
        rows.append(f"{number} {centre[0]} {centre[1]} {(x1 - x0) / WIDTH} {(y1 - y0) / HEIGHT}")
    return "\n".join(rows)


def table(header, form, teeth=TEETH, divided=","):
    rows = [form(x0, y0, x1, y1) for x0, y0, x1, y1 in teeth.values()]
    lines = [[*header, "class"], *([*("x.png", *row), name] for row, name in zip(rows, teeth, strict=True))]
    return "\n".join(divided.join(map(str, line)) for line in lines)


def label_image(teeth=TEETH):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for name, (x0, y0, x1, y1) in teeth.items():
        mask[y0:y1, x0:x1] = int(name)
    return mask


def run_lengths(mask):
    """Counts of a COCO run-length mask: of 0 and 1 in turn, column by column, zeros first."""
    flat = mask.flatten(order="F").astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return np.diff(np.concatenate([[0], edges])).tolist()


def compressed(counts):
    """The same as COCO's text: from the fourth on the difference to two before, then 5 bits a character from "0" on."""
    text = ""
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        while True:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def rle(x0, y0, x1, y1, packing=list):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return {"segmentation": {"size": [HEIGHT, WIDTH], "counts": packing(run_lengths(mask))}}


def polygon(x0, y0, x1, y1):
    return {"bbox": None, "segmentation": [[x0, y0, x1, y0, (x0 + x1) / 2, y1], [x0, y1, x1, y1, x1, y0]]}


def centred(x0, y0, x1, y1):
    return (x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT


NAMES = {"data.yaml": "names: ['11', '36', '48']"}
FORMATS = {
    "yolo": ("yolo", {"labels/x.txt": yolo(), **NAMES}),
    "coco": ("coco", {"annotations/instances.json": json.dumps(coco())}),
    "coco of polygons": ("coco", {"a.json": json.dumps(coco(outline=polygon), indent=2)}),
    "coco of runs": ("coco", {"a.json": json.dumps(coco(outline=rle))}),
    "coco of packed runs": ("coco", {"no_suffix": json.dumps(coco(outline=lambda *b: rle(*b, packing=compressed)))}),
    "coco in folders": ("coco", {"a.json": json.dumps(coco(file_name="C:\\data\\images\\x.png"))}),
    "coco of another size": (
        "coco",
        {"a.json": json.dumps(coco({k: [2 * v for v in b] for k, b in TEETH.items()}, size=(400, 240)))},
    ),
    "voc": ("voc", {"Annotations/x.xml": voc()}),
    "voc by stem": ("voc", {"Annotations/x.xml": voc(filename="renamed.jpg", size=None)}),
    "voc by name": ("voc", {"box1.txt": voc(head="<!-- by hand -->\n")}),
    "edges": ("csv", {"t.csv": table(["image", "x0", "y0", "x1", "y1"], lambda *b: b)}),
    "tf csv": (
        "csv",
        {"t.csv": table(["filename", "width", "height", "xmin", "ymin", "xmax", "ymax"], lambda *b: (200, 120, *b))},
    ),
    "corners 1 and 2": ("csv", {"t.tsv": table(["path", "x1", "y1", "x2", "y2"], lambda *b: b, divided="\t")}),
    "start and sides": (
        "csv",
        {"t.data": table(["file_name", "x", "y", "w", "h"], lambda a, b, c, d: (a, b, c - a, d - b), divided=";")},
    ),
    "centre and sides": ("csv", {"t.csv": table(["image", "x_center", "y_center", "width", "height"], centred)}),
    "utf-16": (
        "csv",
        {"t.txt": table(["image", "left", "top", "right", "bottom"], lambda *b: b, divided="\t").encode("utf-16")},
    ),
    "lines": ("lines", {"boxes/x.txt": "\n".join(f"{a} {b} {c} {d} {n}" for n, (a, b, c, d) in TEETH.items())}),
    "lines of shares": (
        "lines",
        {"x.txt": "\n".join(f"{a / 200},{b / 120},{c / 200},{d / 120},tooth {n}" for n, (a, b, c, d) in TEETH.items())},
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_teeth(tmp_path, name):
    kind, texts = FORMATS[name]
    pixels = radiograph()
    source = zipped(tmp_path / "a.zip", {"images/x.png": saved(pixels), **texts})
    manifest = packed(source, tmp_path / "out")
    assert manifest["settings"]["boxes"] == kind
    assert manifest["ledgers"]["files"] == {"seen": 1 + len(texts), "used": 1 + len(texts), "rejected": 0}
    assert manifest["ledgers"]["boxes"] == {"seen": 3, "used": 3, "rejected": 0}
    found = {meta["fdi"]: (meta, crop) for meta, crop in samples_of(tmp_path / "out")}
    assert set(found) == {11, 36, 48}
    for number, (x0, y0, x1, y1) in TEETH.items():
        meta, crop = found[int(number)]
        assert meta["box"] == pytest.approx([x0, y0, x1, y1], abs=2e-3)
        assert meta["tooth_type"] == {"11": "incisor", "36": "molar", "48": "molar"}[number]
        rows, columns = crop.shape[0] - (y1 - y0), crop.shape[1] - (x1 - x0)
        assert 0 <= min(rows, columns) <= max(rows, columns) <= 1  # shares in decimals may touch a further pixel
        if not rows and not columns:
            assert np.array_equal(crop, pixels[y0:y1, x0:x1])


@pytest.mark.parametrize(
    "places", [("masks/x.png",), ("x_mask.png",), ("set/mask/x.png", "set/img/x.png"), ("labels/x.tif",)]
)
def test_masks_give_the_same_boxes(tmp_path, places):
    mask, image = (*places, "images/x.png" if "_mask" not in places[0] else "x.png")[:2]
    suffix = "tiff" if mask.endswith("tif") else "png"
    source = zipped(tmp_path / "a.zip", {image: saved(radiograph()), mask: saved(label_image(), suffix)})
    manifest = packed(source, tmp_path / "out")
    assert manifest["settings"]["boxes"] == "masks"
    assert manifest["ledgers"]["radiographs"]["seen"] == 1
    assert {meta["class"]: tuple(meta["box"]) for meta, _ in samples_of(tmp_path / "out")} == TEETH
    assert all("fdi" not in meta for meta, _ in samples_of(tmp_path / "out"))  # values may count anything
    packed(source, tmp_path / "none", boxes="none")
    assert len(samples_of(tmp_path / "none")) == 1  # a mask is never a crop


def test_masks_apart_and_forced_kinds(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "x.png").write_bytes(saved(radiograph()))
    (scans / "x.txt").write_text(yolo())
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "x.png").write_bytes(saved(label_image()))
    (tmp_path / "drawn" / "y.png").write_bytes(saved(label_image()))
    manifest = packed(scans, tmp_path / "out", boxes=str(tmp_path / "drawn"))
    assert manifest["settings"]["boxes"] == "masks"
    assert manifest["ledgers"]["files"] == {"seen": 4, "used": 2, "rejected": 2}
    assert manifest["ledgers"]["radiographs"]["seen"] == 1
    (scans / "x_mask.png").write_bytes(saved(label_image()))
    assert packed(scans, tmp_path / "auto")["settings"]["boxes"] == "yolo"
    forced = packed(scans, tmp_path / "forced", boxes="masks")
    assert forced["settings"]["boxes"] == "masks"
    assert forced["reasons"]["files"] == {"annotations of another kind than masks": 1}
    with pytest.raises(PackError, match="no annotations of the kind coco"):
        packed(scans, tmp_path / "x", boxes="coco")


def test_a_masks_folder_without_twins_holds_radiographs(tmp_path):
    source = zipped(tmp_path / "a.zip", {"labels/1.png": saved(radiograph(1)), "labels/2.png": saved(radiograph(2))})
    assert packed(source, tmp_path / "out")["ledgers"]["radiographs"]["used"] == 2


def parts_by_scipy(values):
    """Boxes of the 8-connected parts of every value but 0."""
    boxes = set()
    for value in set(np.unique(values)) - {0}:
        numbered, _ = ndimage.label(values == value, structure=np.ones((3, 3)))
        for rows, columns in ndimage.find_objects(numbered):
            boxes.add((int(value), columns.start, rows.start, columns.stop, rows.stop))
    return boxes


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.uint16]))
def test_mask_parts_are_those_that_scipy_finds(height, width, seed, depth):
    rng = np.random.default_rng(seed)
    values = (rng.integers(0, 5, (height, width)) * (rng.random((height, width)) < 0.6)).astype(depth)
    values[0, 0] = 0
    mask = read_mask(saved(values))
    found = {(v, *map(int, box)) for v, box in zip(mask.values, mask.boxes, strict=True)}
    assert found == parts_by_scipy(values)
    assert mask.areas.sum() == (values > 0).sum()
    assert bool(mask.reason) == (not values.any())


def test_masks_of_every_make():
    binary = np.zeros((80, 120), np.uint8)
    cv2.ellipse(binary, (30, 40), (15, 25), 0, 0, 360, 255, -1)
    cv2.ellipse(binary, (90, 40), (12, 30), 0, 0, 360, 255, -1)
    expected = {box[1:] for box in parts_by_scipy(binary)}

    def boxes(mask):
        return {tuple(map(int, box)) for box, area in zip(mask.boxes, mask.areas, strict=True) if area >= mask.smallest}

    buffer = io.BytesIO()
    Image.fromarray(binary).convert("1").save(buffer, "png")
    colour = np.zeros((80, 120, 3), np.uint8)
    colour[binary > 0] = (255, 0, 128)
    clear = np.dstack([np.full((80, 120, 3), 200, np.uint8), binary])
    palette = Image.fromarray((binary > 0).astype(np.uint8) * 3).convert("P")
    indexed = io.BytesIO()
    palette.save(indexed, "png")
    for raw, name in (
        (saved(binary), None),
        (buffer.getvalue(), None),
        (saved(colour), "#ff0080"),
        (saved(np.where(colour > 0, colour, 77)), "#ff4d80"),  # on a ground that is not black
        (saved(clear), 200),
        (indexed.getvalue(), 3),
        (saved(binary // 255), 1),
        (saved(np.dstack([binary] * 3), "jpeg", quality=95), None),
        (saved(cv2.GaussianBlur(binary, (3, 3), 0)), None),
    ):
        mask = read_mask(raw)
        assert mask.reason == ""
        found = boxes(mask)
        assert len(found) == 2
        assert all(min(np.abs(np.subtract(box, other)).max() for other in expected) <= 1 for box in found)
        assert set(mask.values) == {name}
    rimmed = label_image({str(n): (15 * n - 10, 10, 15 * n, 100) for n in range(1, 13)})
    rimmed[:, 4::15] = 255  # as Pascal VOC draws rims
    assert set(read_mask(saved(rimmed)).values) == {*range(1, 13), 255}
    for raw, words in (
        (saved(radiograph()), "a picture, not a mask"),
        (saved(np.dstack([radiograph(i) for i in range(3)])), "a picture, not a mask"),
        (saved(np.zeros((9, 9), np.uint8)), "without parts"),
        (saved(np.full((9, 9), 0.5, np.float32), "tiff"), "floating-point"),
        (
            saved(
                np.where(np.indices((200, 200)).sum(0) % 2 * (np.indices((200, 200))[0] % 2), 255, 0).astype(np.uint8)
            ),
            "noise",
        ),
        (saved(binary)[:60], "damaged"),
        (b"", "damaged"),
    ):
        assert words in read_mask(raw).reason


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_run_length_masks(height, width, seed, packing):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.choice([0.05, 0.3, 0.9])
    counts = run_lengths(mask)
    found = _run_corners({"size": [height, width], "counts": compressed(counts) if packing else counts})
    rows, columns = np.nonzero(mask)
    expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None
    assert found == expected


def stored(upright, orientation):
    """The pixels that a file with this EXIF orientation holds, for an image that is to be seen as `upright`."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]


def bounds(marked):
    rows, columns = np.nonzero(marked > 200)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_boxes_stay_on_their_teeth_when_exif_turns_the_image(tmp_path, orientation, kind):
    """The bright tooth is cut out whichever image, upright or as stored, the annotator's tool measured in."""

    def write(teeth, image, size=(WIDTH, HEIGHT)):
        if kind == "voc":
            return {f"{image}.xml": voc(teeth, size, image)}
        return {f"{image}.json": json.dumps(coco(teeth, size=size, file_name=image))}

    upright = radiograph() // 2
    upright[20:70, 30:60] = 255
    upright[20:70:3, 40:50] = 215
    file = np.ascontiguousarray(stored(upright, orientation))
    tags = Image.Exif()
    tags[0x0112] = orientation
    cases = {"upright": (bounds(upright), upright.shape)}
    if orientation >= 5:
        cases["stored"] = bounds(file), file.shape
        cases["half"] = tuple(v / 2 for v in bounds(file)), (file.shape[0] // 2, file.shape[1] // 2)
    cases["odd"] = (1, 1, 50, 50), (HEIGHT, WIDTH // 2)
    for case, (box, (height, width)) in cases.items():
        members = {"x.jpg": saved(file, "jpeg", exif=tags, quality=100), "y.png": saved(upright)}
        members |= write({"36": box}, "x.jpg", (width, height)) | write(TEETH, "y.png")  # y: a crop is always left
        source = zipped(tmp_path / f"{case}.zip", members)
        manifest = packed(source, tmp_path / case, boxes=kind)
        found = [crop for meta, crop in samples_of(tmp_path / case) if crop.mean() > 225]
        if case == "odd":
            assert manifest["reasons"]["boxes"] == {
                "its annotation states a width and height that are not its radiograph's": 1
            }
        else:
            assert [crop.shape for crop in found] == [(50, 30)], case


def test_sizes_that_decide():
    box = Box("", (10.0, 20.0, 30.0, 60.0), False, {}, (100, 200))
    assert place(box, (100, 200), lambda: 6) == (10, 20, 30, 60)
    assert place(box, (200, 100), lambda: 6) == (140, 10, 180, 30)
    assert place(box, (51, 101), lambda: 1) == (5.1, 10.1, 15.3, 30.3)  # half, with sides rounded up
    for size in ((200, 100), (100, 190), (512, 512)):
        with pytest.raises(CropError, match="states a width"):
            place(box, size, lambda: 1)
    assert place(box._replace(corners=(0.1, 0.1, 0.5, 0.5), relative=True), (512, 512), lambda: 1)[2:] == (256, 256)
    assert place(box._replace(stated=None), (512, 512), lambda: 6) == (10, 20, 30, 60)
    inverted = box._replace(corners=(30.0, 20.0, 10.0, 60.0))
    assert place(inverted, (200, 100), lambda: 6) == (140, 30, 180, 10)  # still inverted, to be rejected as such


def planned(texts, images=("x.png",), choice="auto", masks=(), labels=()):
    """A plan and its books without any file."""
    ledgers, inventory = Ledgers(), Inventory()

    def entry(name, source=0):
        ledgers.see("files", KEY.id("file", name))
        return Entry(source, name, KEY.id("file", name), KEY.id("radiograph", name))

    for name in images:
        inventory.images.append(entry(f"s/{name}"))
        ledgers.see("radiographs", inventory.images[-1].radiograph)
    inventory.texts = [Text(entry(f"s/{name}"), text) for name, text in texts.items()]
    inventory.masks = [Masked(entry(f"s/{name}"), read_mask(raw)) for name, raw in masks]
    return plan_boxes(Choices(choice, labels), inventory, Inventory(), KEY, ledgers), ledgers


def labels_of(plan):
    return [box.labels for boxes in plan.boxes.values() for box in boxes]


def fdis(plan):
    return [labels.get("fdi") for labels in labels_of(plan)]


def test_a_list_that_counts_is_no_fdi(tmp_path):
    teeth = {str(n): (1, 1, 20, 20) for n in (11, 21, 32)}
    counted = [str(n) for n in range(1, 33)]
    fdi = [str(10 * q + p) for q in range(1, 5) for p in range(1, 9)]
    assert fdis(planned({"a.json": json.dumps(coco(teeth, counted))})[0]) == [None] * 3
    assert fdis(planned({"a.json": json.dumps(coco(teeth, ["background", "0", *fdi]))})[0]) == [11, 21, 32]
    assert fdis(planned({"a.json": json.dumps(coco({"tooth 11": (1, 1, 9, 9)}, ["tooth 11", "tooth 9"]))})[0]) == [None]
    rows = "\n".join(f"{n} 0.5 0.5 0.2 0.2" for n in (10, 20, 31))
    assert fdis(planned({"x.txt": rows, "classes.txt": "\n".join(counted)})[0]) == [None] * 3
    assert fdis(planned({"x.txt": rows})[0]) == [None] * 3  # bare numbers are nobody's
    objects = {"11": (1, 1, 9, 9), "3": (1, 1, 9, 9)}
    assert fdis(planned({"x.xml": voc(objects)})[0]) == [None, None]
    lines = "1 1 9 9 11\n1 1 9 9 "
    assert fdis(planned({"x.txt": f"{lines}12"})[0]) == [11, 12]
    assert fdis(planned({"x.txt": f"{lines}7"})[0]) == [None, None]
    for column, expected in (("fdi", [11, None]), ("tooth", [None, None]), ("class", [None, None])):
        text = f"image,x0,y0,x1,y1,{column}\nx.png,1,1,9,9,11\nx.png,1,1,9,9,30\n"
        assert fdis(planned({"t.csv": text})[0]) == expected


def test_primary_teeth_have_a_name_of_their_own():
    plan, _ = planned({"a.json": json.dumps(coco({"55": (1, 1, 9, 9), "16": (1, 1, 9, 9)}))})
    assert labels_of(plan) == [
        {"class": "55", "primary_tooth": 55},
        {"class": "16", "fdi": 16, "tooth_type": "molar", "position": 16},
    ]
    plan, _ = planned({"t.csv": "image,x0,y0,x1,y1,fdi\nx.png,1,1,9,9,85\n"})
    assert labels_of(plan) == [{"primary_tooth": 85}]


def test_width_and_height_may_be_the_images_or_the_boxs():
    rows = {"image": "400,240", "box": "8,18"}
    for case, sides in rows.items():
        plan, _ = planned({"t.csv": f"image,x0,y0,x1,y1,width,height\nx.png,1,2,9,20,{sides}\n"})
        (box,) = plan.boxes[KEY.id("radiograph", "s/x.png")]
        assert box.stated == ((400, 240) if case == "image" else None)


def test_a_table_that_breaks_off_says_so():
    text = "image,x0,y0,x1,y1\nx.png,1,2,30,40\n" + 'x.png,"' + "1\n" * 100_000
    plan, ledgers = planned({"t.csv": text})
    assert len(labels_of(plan)) == 1
    assert [reason for reason in ledgers.reasons()["boxes"] if "not closed" in reason]


def test_dentex():
    """Quadrants and places are numbered from 0 and named from 1."""
    document = coco()
    document["categories_1"] = [{"id": n, "name": n + 1} for n in range(4)]
    document["categories_2"] = [{"id": n, "name": str(n + 1)} for n in range(8)]
    document["categories_3"] = [{"id": 0, "name": "Impacted"}, {"id": 1, "name": "Caries"}]
    del document["categories"]
    document["annotations"] = [
        {"image_id": 5, "bbox": [1, 1, 9, 9], "category_id_1": 3, "category_id_2": 7, "category_id_3": 0},
        {"image_id": 5, "bbox": [1, 1, 9, 9], "category_id_1": 0, "category_id_2": 2},
        {"image_id": 5, "bbox": [1, 1, 9, 9], "category_id_1": 1},
    ]
    for strip in ((), ("categories_1", "categories_2")):
        document = {key: value for key, value in document.items() if key not in strip}
        plan, _ = planned({"a.json": json.dumps(document)})
        assert labels_of(plan) == [
            {"finding": "Impacted", "fdi": 48, "tooth_type": "molar", "position": 48},
            {"fdi": 13, "tooth_type": "canine", "position": 13},
            {"quadrant": "2"},
        ]


def test_what_wins_and_what_is_left(tmp_path, capsys):
    """Each source by itself takes the kind that covers most of its radiographs."""
    first = {f"{i}.png": saved(radiograph(i)) for i in range(3)}
    first |= {f"{i}.txt": yolo() for i in range(3)}
    first |= {"a.json": json.dumps(coco(file_name="0.png"))}
    second = {"x.png": saved(radiograph(7)), "x.xml": voc(), "x.txt": yolo(), "t.csv": "image,finding\nx.png,caries\n"}
    sources = [zipped(tmp_path / "a.zip", first), zipped(tmp_path / "b.zip", second)]
    manifest = packed(sources, tmp_path / "out", quiet=False)
    assert manifest["settings"]["boxes"] == "voc+yolo"
    assert manifest["reasons"]["files"] == {
        "annotations of another kind than voc+yolo": 2,
        "none of its boxes gives a crop": 1,
    }
    assert manifest["reasons"]["boxes"] == {"its radiograph has boxes of another kind": 3}
    assert manifest["ledgers"]["boxes"]["used"] == 12
    said = capsys.readouterr().out
    assert "boxes: voc+yolo (1 VOC file(s); 4 YOLO files, no class names; left: 1 COCO file(s)" in said


def test_numbers_that_can_be_read_in_two_ways():
    both = "0 0.2 0.6 0.9\n0 0.1 0.3 0.4 0.5\n"
    sure_lines, sure_yolo = "10 20 30 40 molar\n0 0 9 9\n", "3 0.5 0.5 0.2 0.4\n"
    for texts, kind in (
        ({"x.txt": both}, "lines"),
        ({"x.txt": sure_lines}, "lines"),
        ({"x.txt": sure_yolo}, "yolo"),
        ({"x.txt": sure_yolo + "0 0.1 0.3 0.4 0.5\n"}, "yolo"),
        ({"x.txt": "0 0.3 0.3 0.4 0.5\n", "data.yaml": "nc: 3\nnames: [a, b, c]"}, "yolo"),
        ({"x.txt": "0 0.5 0.5 0.2 0.4\n0 100 50 20 40\nthe end"}, "yolo"),
        ({"x.txt": "Dear colleague,\n2 molars and 1 canine are missing."}, "none"),
        ({"x.txt": "\n", "y.txt": "1 2 3 4\n5 6 7 8"}, "none"),  # numbers about no image
    ):
        assert planned(texts)[0].format == kind, texts
    with pytest.raises(PackError, match=r"YOLO rows .* and as lines of corners .*--boxes yolo or --boxes lines"):
        planned({"x.txt": "0 0.1 0.3 0.4 0.5\n"})
    plan, _ = planned({"x.txt": "0 0.1 0.3 0.4 0.5\n"}, choice="lines")
    assert [box.corners for box in plan.boxes[KEY.id("radiograph", "s/x.png")]] == [(0, 0.1, 0.3, 0.4)]
    plan, ledgers = planned({"x.txt": sure_lines, "y.txt": "", "z.txt": "9 8 7"}, images=("x.png", "y.png", "z.png"))
    assert plan.format == "lines"
    assert sorted(ledgers.reasons()["files"]) == ["it holds no boxes"]
    assert ledgers.reasons()["boxes"] == {"not a line of four corners and a label": 1}


def test_the_order_of_files_changes_nothing():
    texts = {"x.xml": voc(), "sub/other.xml": voc({"21": (5, 5, 30, 30)}), "labels/x.xml": voc({"22": (5, 5, 30, 30)})}
    (one, books), (other, other_books) = planned(texts), planned(dict(reversed(texts.items())))
    assert {k: list(v) for k, v in one.boxes.items()} == {k: list(v) for k, v in other.boxes.items()}
    assert books.totals() == other_books.totals()
    assert books.reasons()["boxes"] == {"another annotation file has its radiograph": 4}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>', "document type"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "document type"),
        ("<annotation><object>", "damaged XML"),
        ("<annotation>&lol;</annotation>", "damaged XML"),
        ("<annotation>" * 200_000, "damaged XML"),
        ("<annotation/>", "it holds no boxes"),
    ],
)
def test_xml_that_means_harm(text, words):
    body = text if "<annotation" in text else voc(head=text)
    _, ledgers = planned({"x.xml": body, "y.xml": voc(filename="y.png")}, images=("x.png", "y.png"))
    assert words in " ".join(ledgers.reasons()["files"])


def test_coco_rows_that_are_no_boxes():
    document = coco()
    good = document["annotations"][0]
    document["images"] += [{"id": 6, "file_name": "gone.png"}, {"id": 8}, "image"]
    document["images"] += [{"id": 9, "file_name": name} for name in ("x.png", "y.png")]
    document["annotations"] = [
        good,
        good | {"image_id": 6},
        good | {"image_id": 8},
        good | {"image_id": 9},
        good | {"image_id": [5]},
        good | {"iscrowd": 1},
        good | {"bbox": [1, 2, 3]},
        good | {"bbox": "none"},
        good | {"bbox": [], "segmentation": []},
        good | {"bbox": [], "segmentation": {"size": [9, 9], "counts": [100]}},
        good | {"bbox": [], "segmentation": {"size": [9, 9], "counts": "~~~"}},
        good | {"bbox": [], "segmentation": [[1, 2, 3]]},
        None,
    ]
    plan, ledgers = planned({"a.json": json.dumps(document)})
    assert len(labels_of(plan)) == 1
    assert ledgers.reasons()["boxes"] == {
        "no radiograph for it": 1,
        "its image_id is that of no image, or of several": 3,
        "a crowd (iscrowd), which is no single tooth": 1,
        "neither a bbox of four numbers nor an outline": 6,
        "an annotation that is no object": 1,
    }


BITS = st.sampled_from(
    [
        *('{"images": [', '"annotations": [', '"categories": [', "]", "}", "{", '"id": 5', '"file_name": "x.png"', ","),
        *('"bbox": [1, 2, 30, 40]', '"image_id": 5', '"segmentation": ', '{"size": [9, 9], "counts": "0P1"}', "1e999"),
        *(
            "<annotation>",
            "<object>",
            "</object>",
            "<bndbox><xmin>1</xmin>",
            "</annotation>",
            "&amp;",
            "<filename>x.png",
        ),
        *("image,x0,y0,x1,y1,fdi", "\n", "x.png,1,2,30,40,11", '"', ";", "\t", "0 0.5 0.5 0.2 0.4", "1 2 3 4 molar"),
        *("nan", "-inf", "99999999999999999999999", "\0", "\udcff", "é", "names: [a, b]", "x_min,y_min,width,height"),
    ]
)


@st.composite
def damaged(draw):
    """A good text with some of it cut out or replaced, or bits of all formats in any order."""
    if draw(st.booleans()):
        return "".join(draw(st.lists(BITS, max_size=12)))
    _, texts = FORMATS[draw(st.sampled_from(sorted(FORMATS)))]
    text = next(iter(texts.values()))
    text = text.decode("utf-16") if isinstance(text, bytes) else text
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 40)))
        text = text[:start] + draw(st.one_of(st.just(""), BITS, st.text(max_size=4))) + text[stop:]
    return text


@settings(max_examples=150, deadline=None)
@given(damaged(), st.sampled_from(["x.txt", "a.json", "x.xml", "t.csv", "x", "data.yaml"]), st.binary(max_size=30))
def test_damaged_annotations_never_crash_and_always_balance(text, name, noise):
    raw = bytearray(saved(label_image()))
    raw[40 : 40 + len(noise)] = noise
    texts = {name: text, "y.txt": "0 .5 .5 .2 .2"}
    try:
        plan, ledgers = planned(texts, ("x.png", "y.png"), masks=[("masks/x.png", bytes(raw))])
    except PackError:  # what looks like annotations and is not read ends the pack
        plan, ledgers = planned(texts, ("x.png", "y.png"), "yolo", masks=[("masks/x.png", bytes(raw))])
    kept = {box.id for boxes in plan.boxes.values() for box in boxes}
    assert kept == set(ledgers.used("boxes"))
    for ledger in ledgers.totals().values():
        assert ledger["seen"] == ledger["used"] + ledger["rejected"]
    used = {file for file, ids in plan.files.items() if ids}
    images = {KEY.id("file", f"s/{image}") for image in ("x.png", "y.png")}
    assert set(ledgers.used("files")) - images <= used | set(plan.files)
    for boxes in plan.boxes.values():
        for box in boxes:
            try:
                assert len(place(box, (WIDTH, HEIGHT), lambda: 6)) == 4
            except CropError:
                continue


BOX = st.builds(
    Box,
    st.text(max_size=3),
    st.tuples(*[st.floats(allow_nan=False)] * 4),
    st.booleans(),
    st.just({"class": "a"}),
    st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
)


@given(st.lists(BOX, max_size=9))
def test_packed_boxes_are_the_boxes(given_boxes):
    boxes = Boxes()
    for box in given_boxes:
        boxes.append(box)
    assert list(boxes) == given_boxes
    assert boxes[1:-1] == given_boxes[1:-1]
    assert len(boxes) == len(given_boxes)


def test_preview_draws_the_boxes_of_every_format(tmp_path):
    """A frame of white where each tooth is, on a dark image; nothing over whole images, whose borders are enlarged."""
    dark = np.full((HEIGHT, WIDTH), 40, np.uint8)
    tags = Image.Exif()
    tags[0x0112] = 6
    sheets = {}
    turned = {n: (b[1], WIDTH - b[2], b[3], WIDTH - b[0]) for n, b in TEETH.items()}  # as drawn on the stored image
    members = {
        "yolo": {"x.png": saved(dark), "x.txt": yolo()},
        "masks": {"x.png": saved(dark), "x_mask.png": saved(label_image())},
        "deep": {"x.png": saved(dark.astype(np.uint16) * 16), "x.txt": yolo()},
        "exif": {
            "x.jpg": saved(np.ascontiguousarray(stored(dark, 6)), "jpeg", exif=tags),
            "a.json": json.dumps(coco(turned, size=(HEIGHT, WIDTH), file_name="x.jpg")),
        },
        "none": {"x.png": saved(dark)},
    }
    for name, content in members.items():
        source = zipped(tmp_path / f"{name}.zip", content)
        told = preview([source], tmp_path / f"{name}.png", pixel_aspect=1.5)
        assert "1 of 1 radiographs" in told[0]
        sheets[name] = cv2.imread(str(tmp_path / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    height, width = 360, 900
    for name in ("yolo", "masks", "exif", "deep"):
        assert sheets[name].shape == (height, width)
        for x0, y0, x1, y1 in TEETH.values():
            sides = [sheets[name][round(y * 3) - 1 : round(y * 3) + 2, round(x0 * 4.5) + 40] for y in (y0, y1)]
            sides += [sheets[name][round(y1 * 3) - 20, round(x * 4.5) - 1 : round(x * 4.5) + 2] for x in (x0, x1)]
            assert all(side.max() == 255 for side in sides), name
    assert sheets["none"].shape[0] > height
    assert (sheets["none"][:height] == 40).all()


@pytest.mark.parametrize(
    ("stored", "told", "encoding"),
    [
        (unicodedata.normalize("NFD", "Röntgen é"), "Röntgen é", "utf-8"),
        ("Röntgen é", "Röntgen é", "cp1252"),
        ("IMG_1", "img_1", "utf-8"),
    ],
)
def test_names_are_compared_as_people_read_them(tmp_path, stored, told, encoding):
    """A Mac's archive has decomposed names, a western spreadsheet saves cp1252, and Windows knows no case."""
    table = f"image,x0,y0,x1,y1,fdi\n{told}.png,20,10,60,50,11\n".encode(encoding)
    source = zipped(tmp_path / "a.zip", {f"{stored}.png": saved(radiograph()), "boxes.csv": table})
    assert packed(source, tmp_path / "out")["ledgers"]["boxes"] == {"seen": 1, "used": 1, "rejected": 0}
    beside = {f"{stored}.png": saved(radiograph()), f"{told}.txt": "0 0.5 0.5 0.3 0.5"}
    source = zipped(tmp_path / "b.zip", beside)
    assert packed(source, tmp_path / "beside")["ledgers"]["boxes"] == {"seen": 1, "used": 1, "rejected": 0}


def test_case_counts_where_two_images_differ_by_it_alone(tmp_path):
    images = {"x.png": saved(radiograph(1)), "X.png": saved(radiograph(2))}
    table = "image,x0,y0,x1,y1\nX.png,20,10,60,50\nx.PNG,20,10,60,50\n"
    source = zipped(tmp_path / "a.zip", {**images, "boxes.csv": table})
    assert packed(source, tmp_path / "out")["ledgers"]["boxes"] == {"seen": 2, "used": 1, "rejected": 1}


def test_large_texts_are_held_only_if_they_begin_as_annotations_do():
    log = "2014-03-01 12:00:00 viewer started\n" * 40_000
    assert len(log) > inventory._LARGE
    rows = "4 10.5 20 30.25\n" * 3
    for text in (
        '{"images": [], "annotations": []}',
        "<annotation>",
        "image,x0\n",
        "image;x0\n",
        "0 0.5 0.5 0.1 0.1",
        rows,
    ):
        assert inventory._annotates(text)
    for text in (log, '{"level": "info"}\n' * 9, "<html>", "1,2,3\n", "nan inf nan inf"):
        assert not inventory._annotates(text)
    ledgers, key = Ledgers(), Key(b"a public key for tests", None)
    member = Member("viewer.log", len(log), lambda: io.BytesIO(log.encode()), "")
    taken = inventory.list_files([(0, Source(Path("a"), "a"), [member])], key, ledgers)
    assert taken.texts == []
    assert ledgers.totals()["files"] == {"seen": 1, "used": 0, "rejected": 1}


@pytest.mark.parametrize(
    "form",
    [
        lambda text: f"sep=;\n{text.replace(',', ';')}",
        lambda text: text.replace("\n", "\r"),
        lambda text: f"\n\n{text}",
        lambda text: text.replace(",", ";").replace(".5", ",5"),
        lambda text: text.replace(",", "\t").replace("\n", "\r\n"),
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path, form):
    rows = "image,x0,y0,x1,y1,fdi\nx.png,20.5,10.5,60.5,50.5,11\nx.png,100.5,30.5,150.5,110.5,36\n"
    source = zipped(tmp_path / "a.zip", {"x.png": saved(radiograph()), "boxes.csv": form(rows)})
    assert packed(source, tmp_path / "out")["settings"]["boxes"] == "csv"
    found = {meta["fdi"]: meta["box"] for meta, *_ in samples_of(tmp_path / "out")}
    assert found == {11: [20.5, 10.5, 60.5, 50.5], 36: [100.5, 30.5, 150.5, 110.5]}


def test_a_list_of_classes_does_not_multiply(tmp_path):
    """PyYAML before 6.0.4 merged nine mappings of nine of nine ... until the memory was full."""
    lines = ["names: ['11', '36', '48']", "l0: &l0 {a: 1}"]
    lines += [f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 9)}]}}" for n in range(1, 13)]
    assert _class_list(".yaml", "data.yaml", "\n".join(lines)) is None
    assert _class_list(".yaml", "data.yaml", lines[0]).names == {0: "11", 1: "36", 2: "48"}


@pytest.mark.parametrize(
    "text",
    [
        "# by the annotator\nimage,x0,y0,x1,y1,class\na.png,5,5,25,40,caries\n",
        "Image Name|X Min|Y-Min|x max|y max|class\na.png|5|5|25|40|caries\n",
        ",image,x0,y0,x1,y1,class\n0,a.png,5,5,25,40,caries\n",
    ],
)
def test_tables_as_people_write_them(text, tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 50), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(text)
    pack(PackConfig([tmp_path], tmp_path / "out", key=b"a public key for tests", labels=["Class"]))
    said = capsys.readouterr().out
    assert "boxes: csv" in said
    assert "columns left out" not in said
    sample = ShardSet(tmp_path / "out").meta(0)
    assert (sample["class"], sample["box"]) == ("caries", [5, 5, 25, 40])


def test_a_table_that_names_no_images_is_told(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 50), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("who,x0,y0\na.png,5,5\n")
    with pytest.raises(PackError, match="boxes in unknown columns"):
        pack(PackConfig([tmp_path], tmp_path / "out", key=b"a public key for tests", quiet=True))
    manifest = pack(PackConfig([tmp_path], tmp_path / "out", key=b"a public key for tests", quiet=True, boxes="none"))
    reason = "annotations in a format that is not read: a table with boxes in unknown columns"
    assert manifest["reasons"]["files"] == {reason: 1}


def test_names_of_a_folder_and_its_table_in_the_code_page_of_windows(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 50), dtype=np.uint8))
    image.save(tmp_path / os.fsdecode("Müller.png".encode("cp1252")))
    (tmp_path / "t.csv").write_bytes("image,x0,y0,x1,y1,class\nMüller.png,5,5,25,40,caries\n".encode("cp1252"))
    manifest = pack(PackConfig([tmp_path], tmp_path / "out", key=b"a public key for tests", quiet=True))
    assert manifest["ledgers"]["boxes"]["used"] == 1
