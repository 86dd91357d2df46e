"""Exports of annotation tools become the boxes and labels that they hold, or are refused by name."""

import base64
import csv
import io
import json
import zlib
from itertools import pairwise

import numpy as np
import pytest
from annotations_fixture import HEIGHT, WIDTH, assert_teeth, coco, packed, saved, scan, teeth

SEEDS = (0, 1, 2)


def full_png(box):
    x0, y0, x1, y1 = box
    return saved(np.full((y1 - y0, x1 - x0), 255, np.uint8))


def corners_of(box):
    x0, y0, x1, y1 = box
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def labelme_shapes(seed):
    """A shape of every kind: attributes, a mask, a rectangle from its lower right corner, a circle's bounds last."""
    first, second, third, fourth = teeth(seed)
    x0, y0, x1, y1 = second
    encoded = base64.b64encode(full_png(second)).decode()
    return [
        {"label": "tooth", "flags": {}, "points": corners_of(first), "attributes": {"FDI number": "36"}},
        {"label": "36", "shape_type": "mask", "points": [[x0, y0], [x1 - 1, y1 - 1]], "mask": encoded},
        {"label": "36", "shape_type": "rectangle", "points": [third[2:], third[:2]]},
        {"label": "36", "shape_type": "rotation", "points": corners_of(fourth)},
        {"label": "apex", "shape_type": "point", "points": [[3, 3]]},
        {"label": "36", "shape_type": "polygon", "points": [[3, 3]]},
    ]


def labelme():
    """Written under Windows, with the image inside, and equal names in two subsets."""
    members = {}
    for name, seed in (("train/images/0", 0), ("train/images/1", 1), ("val/images/0", 2)):
        document = {"version": "5.4.1", "shapes": labelme_shapes(seed), "imagePath": f"..\\images\\{name[-1]}.png"}
        document |= {"imageData": base64.b64encode(scan(seed)).decode(), "imageWidth": WIDTH, "imageHeight": HEIGHT}
        members[f"{name}.png"] = scan(seed)
        members[f"{name.replace('images', 'labels')}.json"] = json.dumps(document)
    return members


def cvat():
    """A project with two tasks whose frames have equal names; boxes turned by 90 degrees stand upright."""
    members, images = {}, ""
    for subset, name, seed in (("Train", 0, 0), ("Train", 1, 1), ("Test", 0, 2)):
        members[f"images/{subset}/frame_{name}.png"] = scan(seed)
        (a, b, c, d), mask, ellipse, box = teeth(seed)
        x, y, w, h = ((p + q) / 2 for p, q in ((a, c), (b, d), (-a, c), (-b, d)))
        shapes = f'<box label="36" xtl="{x - h}" ytl="{y - w}" xbr="{x + h}" ybr="{y + w}" rotation="90"/>'
        x0, y0, x1, y1 = mask
        shapes += f'<mask label="36" rle="1" left="{x0}" top="{y0}" width="{x1 - x0}" height="{y1 - y0}"/>'
        x0, y0, x1, y1 = ellipse
        rx, ry = (x1 - x0) / 2, (y1 - y0) / 2
        shapes += f'<ellipse label="36" cx="{x0 + rx}" cy="{y0 + ry}" rx="{rx}" ry="{ry}"/>'
        points = ";".join(f"{px},{py}" for px, py in corners_of(box))
        shapes += f'<polygon label="tooth" points="{points}"><attribute name="fdi">36</attribute></polygon>'
        shapes += '<polyline label="canal" points="1,1;2,2"/><tag label="good"/><polygon label="36" points="1,1;2"/>'
        images += f'<image id="0" name="frame_{name}.png" subset="{subset}" width="{WIDTH}" height="{HEIGHT}">'
        images += f"{shapes}</image>"
    return members | {"annotations.xml": f"<annotations><version>1.1</version>{images}</annotations>"}


def percent(box):
    x0, y0, x1, y1 = box
    return {"x": x0 / WIDTH * 100, "y": y0 / HEIGHT * 100} | {
        "width": (x1 - x0) / WIDTH * 100,
        "height": (y1 - y0) / HEIGHT * 100,
    }


def brush(box):
    """Run lengths of RGBA values as Label Studio packs them, each pixel of the box opaque."""
    x0, y0, x1, y1 = box
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    flat = pixels.ravel()
    bits = f"{flat.size:032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    edges = [0, *(np.flatnonzero(np.diff(flat.astype(int))) + 1).tolist(), flat.size]
    for start, end in pairwise(edges):
        while start < end:
            count = min(end - start, 1 << 16)
            bits += f"111{count - 1:016b}{flat[start]:08b}" if count > 1 else f"0000{0:02b}{flat[start]:08b}"
            start += count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def label_studio():
    """Uploaded images, whose names have a prefix; a turned rectangle, a polygon, a brush; the answer to a question."""
    members, tasks = {}, []
    for seed in SEEDS:
        members[f"op {seed}.png"] = scan(seed)
        first, second, third, fourth = teeth(seed)
        x0, y0, x1, y1 = second
        turned = {"x": x1 / WIDTH * 100, "y": y0 / HEIGHT * 100, "rotation": 90}
        turned |= {"width": (y1 - y0) / WIDTH * 100, "height": (x1 - x0) / HEIGHT * 100}
        points = [[x / WIDTH * 100, y / HEIGHT * 100] for x, y in corners_of(third)]
        values = [
            ("rectangle", percent(first)),
            ("rectangle", turned),
            ("polygon", {"points": points}),
            ("brush", {"format": "rle", "rle": brush(fourth)}),
            ("keypoint", {"x": 1, "y": 1}),
        ]
        size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        results = [
            {"id": f"r{n}", "type": f"{shape}labels", "value": {**value, f"{shape}labels": ["tooth"]}, **size}
            for n, (shape, value) in enumerate(values)
        ]
        results += [
            {"id": f"r{n}", "type": "choices", "from_name": "fdi", "value": {"choices": ["36"]}} for n in range(4)
        ]
        annotations = [{"result": results}, {"result": results[:1]}, {"result": results[:2], "was_cancelled": True}]
        data = {"image": f"/data/upload/1/ab12cd3{seed}-op%20{seed}.png"}
        tasks.append({"id": seed, "data": data, "annotations": annotations})
    return members | {"project-1.json": json.dumps(tasks)}


def label_studio_min():
    """JSON-MIN of images in local storage; the second entry of a task is a second annotator's."""
    members, tasks = {}, []
    for seed in SEEDS:
        members[f"{seed}.png"] = scan(seed)
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        regions = [{**percent(box), "rotation": 0, "rectanglelabels": ["36"], **size} for box in teeth(seed)]
        tasks.append({"image": f"/data/local-files/?d=x/{seed}.png", "id": seed, "label": regions, "annotator": 1})
    again = {**tasks[0], "annotator": 2}
    return members | {"project.json": json.dumps([*tasks, again])}


def via_regions(seed):
    """A region of every shape."""
    rect, circle, ellipse, polygon = teeth(seed)
    shapes = []
    for x0, y0, x1, y1 in (rect, circle):
        shapes.append({"name": "rect", "x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0})
    x0, y0, x1, y1 = ellipse
    rx, ry = (x1 - x0) / 2, (y1 - y0) / 2
    shapes.append({"name": "ellipse", "cx": x0 + rx, "cy": y0 + ry, "rx": ry, "ry": rx, "theta": np.pi / 2})
    xs, ys = zip(*corners_of(polygon), strict=True)
    shapes.append({"name": "polygon", "all_points_x": xs, "all_points_y": ys})
    shapes += [{"name": "point", "cx": 1, "cy": 1}, {"name": "rect"}]
    return [{"shape_attributes": shape, "region_attributes": {"tooth": "36"}} for shape in shapes]


def via_images():
    return {f"{s}.png{99 + s}": {"filename": f"{s}.png", "size": 99 + s, "regions": via_regions(s)} for s in SEEDS}


def via():
    return {
        **{f"{seed}.png": scan(seed) for seed in SEEDS},
        "via.json": json.dumps({"_via_settings": {}, "_via_img_metadata": via_images()}),
    }


def via_json():
    """Annotations alone, with the regions numbered as version 1 does."""
    images = {
        key: image | {"regions": dict(enumerate(image["regions"])), "file_attributes": {}}
        for key, image in via_images().items()
    }
    return {**{f"{seed}.png": scan(seed) for seed in SEEDS}, "via_region_data.json": json.dumps(images)}


def via_csv():
    out = io.StringIO()
    writer = csv.writer(out)
    names = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    writer.writerow(names.split(","))
    for seed in SEEDS:
        for n, region in enumerate(via_regions(seed)):
            writer.writerow([f"{seed}.png", 9, "{}", 6, n, *map(json.dumps, region.values())])
    writer.writerow(["9.png", 9, "{}", 0, 0, "{}", "{}"])
    return {**{f"{seed}.png": scan(seed) for seed in SEEDS}, "via.csv": out.getvalue()}


def supervisely():
    """Two datasets with equal names: a bitmap, a polygon and rectangles."""
    members = {"p/meta.json": json.dumps({"classes": [{"title": "tooth", "shape": "any"}], "tags": []})}
    for place, seed in (("p/ds1/{}/0.png", 0), ("p/ds1/{}/1.png", 1), ("p/ds2/{}/0.png", 2)):
        bitmap, polygon, *rectangles = teeth(seed)
        data = base64.b64encode(zlib.compress(full_png(bitmap))).decode()
        shapes = [{"geometryType": "bitmap", "bitmap": {"data": data, "origin": bitmap[:2]}}]
        shapes.append({"geometryType": "polygon", "points": {"exterior": corners_of(polygon), "interior": []}})
        for box in rectangles:
            shapes.append({"geometryType": "rectangle", "points": {"exterior": [box[:2], box[2:]], "interior": []}})
        shapes += [{"geometryType": "graph"}, {"geometryType": "bitmap", "bitmap": {"data": "AAAA", "origin": [1, 1]}}]
        about = {"classTitle": "tooth", "tags": [{"name": "fdi", "value": "36"}, {"name": "checked", "value": None}]}
        document = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": [shape | about for shape in shapes]}
        members[place.format("img")] = scan(seed)
        members[place.format("ann") + ".json"] = json.dumps(document)
    return members


TOOLS = [labelme, cvat, label_studio, label_studio_min, via, via_json, via_csv, supervisely]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_a_tools_export_gives_its_teeth(tmp_path, capsys, tool):
    code, samples, said = packed(tmp_path, tool(), capsys)
    assert code == 0, said
    kind = {"label_studio_min": "label_studio", "via_json": "via", "via_csv": "via"}.get(tool.__name__, tool.__name__)
    assert f"boxes: {kind} (" in said
    assert_teeth(samples, SEEDS, fdi=36)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.xml", "<annotations><track id='0'><box frame='0' xtl='1' ytl='2' xbr='3' ybr='4'/></track></annotations>",
         "CVAT for video"),
        ("a.json", '{"items": [{"id": "0", "annotations": [{"label_id": 0, "bbox": [1, 2, 3, 4]}]}]}', "Datumaro"),
        ("a.json", '{"metadata": {"1_a": {"vid": "1", "xy": [2, 10, 10, 30, 40], "av": {}}}}', "VIA 3"),
        ("a.json", '[{"image": "0.png", "annotations": [{"label": "", "coordinates": {"x": 1, "y": 2}}]}]', "CreateML"),
        ("a.ndjson", '{"data_row": {"id": "a"}, "bounding_box": {"top": 1, "left": 2, "width": 3, "height": 4}}\n' * 2,
         "Labelbox"),
        ("0.json", '{"teeth": [{"name": "36", "bbox": [1, 2, 30, 40]}]}', "JSON of an unknown tool"),
        ("0.json", '{"teeth": [{"name": "36", "bbox": [1, 2, 30', "JSON of an unknown tool"),
        ("a.json", '[{"file": "0.png", "diagnosis": "caries"}]', "labels of whole images"),
        ("a.json", '[{"External ID": "0.png", "Label": {"objects": [{"polygons": [[1, 2], [3, 4]]}]}}]', "Labelbox"),
        ("0.xml", "<teeth><tooth><x>3</x><y>4</y></tooth></teeth>", "XML of an unknown tool"),
        ("0.txt", "1 2 3 4 5 6 7 8 9\n" * 3, "numbers in an unknown order"),
        ("t.csv", "0.png,1,2,30,40\n", "numbers in an unknown order"),
        ("t.csv", 'image,id,label\n0.png,1,"[{""x"": 1, ""y"": 2, ""width"": 3}]"\n', "boxes in unknown columns"),
        ("t.csv", "image,bbox\n0.png,\"[1, 2, 3, 4]\"\n", "boxes in unknown columns"),
    ],
)  # fmt: skip
def test_annotations_that_are_not_read_stop_the_pack(tmp_path, capsys, name, text, words):
    code, samples, said = packed(tmp_path, {"0.png": scan(0), name: text}, capsys)
    assert (code, samples) == (2, [])
    assert words in said
    assert name in said
    assert "--boxes none" in said
    code, samples, said = packed(tmp_path, {"0.png": scan(0), name: text}, capsys, "--boxes", "none")
    assert len(samples) == 1
    assert "in a format that is not read" in (tmp_path / "out" / "rejected.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("package.json", '{"name": "x", "version": [1, 2, 3], "labels": ["a"], "splits": {"train": 2}}'),
        ("classes.json", '{"labels": [{"id": 1, "name": "molar"}], "path": "C:/0.jpg.txt"}'),
        ("split.json", '{"train": ["0.png"], "test": []}'),
        ("0.json", '{"00100010": {"vr": "PN"}, "exposure": {"kvp": 60, "ms": 8}}'),
        ("page.svg", '<svg><rect x="1" y="2" width="3" height="4"/></svg>'),
        ("notes.txt", "Dear colleague, 2 molars are missing."),
    ],
)
def test_other_texts_do_not_stop_it(tmp_path, capsys, name, text):
    code, samples, said = packed(tmp_path, {"0.png": scan(0), name: text}, capsys)
    assert (code, len(samples)) == (0, 1), said


def test_damaged_annotations_are_named_where_nothing_is_left(tmp_path, capsys):
    code, samples, said = packed(tmp_path, {"0.png": scan(0), "a.json": coco(["0.png"], [0])[:-40]}, capsys)
    assert (code, samples) == (2, [])
    assert "damaged JSON: it cannot be read to its end" in said


def test_coco_ids_may_be_texts(tmp_path, capsys):
    document = json.loads(coco([f"{seed}.png" for seed in SEEDS], SEEDS, category="7", id_=7))
    for row in document["annotations"]:
        row["image_id"] = str(row["image_id"])
    code, samples, said = packed(
        tmp_path, {**{f"{seed}.png": scan(seed) for seed in SEEDS}, "a.json": json.dumps(document)}, capsys
    )
    assert code == 0, said
    assert_teeth(samples, SEEDS, fdi=36)


def test_radiographs_without_boxes_are_told(tmp_path, capsys):
    members = {f"{seed}.png": scan(seed) for seed in range(6)}
    members["a.json"] = coco(["0.png", "1.png"], [0, 1])
    _, samples, said = packed(tmp_path, members, capsys)
    assert_teeth(samples, [0, 1])
    assert "warning: 4 of 6 radiographs have no boxes and are left out; --boxes none takes every" in said
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    reasons = [line["reason"] for line in rejected if line["ledger"] == "radiographs"]
    assert reasons == ["no boxes for it (--boxes none takes every radiograph whole)"] * 4
