"""What YOLO rows are: boxes, boxes with further columns, outlines; all rows and the `data.yaml` decide together."""

import pytest
from annotations_fixture import assert_teeth, packed, scan, share, teeth

SEEDS = (0, 1, 2)
NAMES = "names:\n  0: '36'\n"


def archive(row, names=NAMES):
    """Roboflow's layout, the class list above its subsets."""
    members = {"data.yaml": names}
    for place, seed in (("train/{}/0", 0), ("train/{}/1", 1), ("valid/{}/0", 2)):
        rows = [row(k, *share(box)) for k, box in enumerate(teeth(seed))]
        members |= {f"{place.format('images')}.png": scan(seed), f"{place.format('labels')}.txt": "\n".join(rows)}
    return members


def written(*values, by=" "):
    return by.join(value if isinstance(value, str) else f"{value:.6f}" for value in values)


def diamond(k, x, y, w, h):
    return written("0", x, y - h / 2, x + w / 2, y, x, y + h / 2, x - w / 2, y)


def upright(k, x, y, w, h):
    x0, y0, x1, y1 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    return written("0", x0, y0, x1, y0, x1, y1, x0, y1)


def hexagon(k, x, y, w, h):
    x0, y0, x1, y1 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    return written("0", x0, y, x, y0, x1, y, (x + x1) / 2, y, x, y1, x0 + w / 4, y)


def triangle(k, x, y, w, h):
    return written("0", x - w / 2, y - h / 2, x + w / 2, y, x, y + h / 2)


def poses(visible):
    """Rows with two key points, each with its visibility unless that is empty."""
    seen = [visible] if visible else []
    return lambda k, x, y, w, h: written("0", x, y, w, h, x, y - h / 3, *seen, x, y + h / 3, *seen)


def varied(k, *box):
    return (written("0", *box), upright(k, *box), hexagon(k, *box), triangle(k, *box))[k]


def four_points(k, x, y, w, h):
    points = [(x - w / 3, y - h / 3), (x + w / 3, y - h / 3), (x + w / 3, y + h / 3), (x - w / 3, y + h / 3)]
    return written("0", x, y, w, h, *(v for px, py in points for v in (px, py, "1")))


def posed_among_boxes(k, *box):
    return written("0", *box) if k == 3 else poses("2")(k, *box)


READ = {
    "four visible key points": (four_points, NAMES),
    "visible key points among boxes": (posed_among_boxes, NAMES),
    "boxes": (lambda k, *box: written("0", *box), NAMES),
    "float classes": (lambda k, *box: " ".join(f"{v:.18e}" for v in (0.0, *box)), NAMES),
    "commas": (lambda k, *box: written("0", *box, by=","), NAMES),
    "commas and blanks": (lambda k, *box: written("0", *box, by=", "), NAMES),
    "semicolons and decimal commas": (lambda k, *box: written("0", *box, by=";").replace(".", ","), NAMES),
    "tabs": (lambda k, *box: written("0", *box, by="\t"), NAMES),
    "confidence": (lambda k, *box: written("0", *box, f"0.8{k}"), NAMES),
    "confidence and track": (lambda k, *box: written("0", *box, f"0.8{k}", f"{k + 1}"), NAMES),
    "track of some": (lambda k, *box: written("0", *box, f"0.8{k}", *([f"{k}"] if k > 1 else [])), NAMES),
    "key points by kpt_shape": (poses(""), "kpt_shape: [2, 2]\nnames: ['36']"),
    "visible key points": (poses("2"), "kpt_shape: [2, 3]\nnames: ['36']"),
    "visible, no kpt_shape": (poses("2"), NAMES),
    "covered, no kpt_shape": (poses("1"), NAMES),
    "key points by task": (poses(""), "task: pose\nnames: ['36']"),
    "oriented": (diamond, NAMES),
    "oriented and upright": (upright, NAMES),
    "outlines of six": (hexagon, NAMES),
    "outlines of three": (triangle, NAMES),
    "outlines among boxes": (varied, NAMES),
    "outlines by task": (hexagon, "task: segment\nnames: ['36']"),
    "no names": (lambda k, *box: written("0", *box), "nc: 1\ntrain: images"),
}


@pytest.mark.parametrize("case", READ)
def test_rows_give_their_teeth(tmp_path, capsys, case):
    row, names = READ[case]
    code, samples, said = packed(tmp_path, archive(row, names), capsys)
    assert code == 0, said
    assert_teeth(samples, SEEDS, fdi=None if case == "no names" else 36)
    assert ("rotated boxes are taken as their bounding rectangles" in said) == (case == "oriented")


@pytest.mark.parametrize(
    ("row", "readings"),
    [
        (poses(""), ("boxes with key points", "oriented boxes (four corners)")),
        (lambda k, x, y, w, h: written("0", x, y, w, h, x, y), ("or a key point", "outlines (polygons)")),
        (poses("0.87"), ("boxes with key points", "outlines (polygons)")),
        (lambda *row: poses("0.87")(*row) + " 0.9", ("boxes with key points", "outlines (polygons)")),
        (lambda *row: poses("0.87")(*row) + " 0.9 7", ("boxes with key points", "outlines (polygons)")),
    ],
)
def test_rows_that_can_be_both_are_refused(tmp_path, capsys, row, readings):
    code, samples, said = packed(tmp_path, archive(row), capsys)
    assert (code, samples) == (2, [])
    assert all(words in said for words in (*readings, "kpt_shape", "task: segment", "data.yaml"))


def test_corners_after_a_class_are_refused(tmp_path, capsys):
    corners = archive(lambda k, x, y, w, h: written("0", x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    code, samples, said = packed(tmp_path, corners, capsys)
    assert (code, samples) == (2, [])
    assert "a class, centre and sides, or a class and corners" in said
    pixels = {f"{seed}.png": scan(seed) for seed in SEEDS}
    for seed in SEEDS:
        pixels[f"{seed}.txt"] = "\n".join(written("3", *map(str, box)) for box in teeth(seed))
    code, samples, said = packed(tmp_path, pixels, capsys)
    assert (code, samples) == (2, [])
    assert "corners and a label" in said
    assert "a class and corners" in said


def test_corner_lines_beside_a_class_list_are_no_boxes(tmp_path, capsys):
    members = {"data.yaml": NAMES}
    for seed in SEEDS:
        rows = [written(*(f"{v}" for v in box), "36") for box in teeth(seed)]
        members |= {f"images/{seed}.png": scan(seed), f"labels/{seed}.txt": "\n".join(rows)}
    code, samples, said = packed(tmp_path, members, capsys)
    assert (code, samples) == (2, [])
    assert "its coordinates are not shares of the image's sides" in said
    del members["data.yaml"]
    code, samples, said = packed(tmp_path, members, capsys)
    assert_teeth(samples, SEEDS, fdi=36)


def test_rows_of_another_form_than_kpt_shape_are_rejected(tmp_path, capsys):
    members = archive(poses("2"), "kpt_shape: [3, 3]\nnames: ['36']")
    code, samples, said = packed(tmp_path, members, capsys)
    assert (code, samples) == (2, [])
    assert "not a box with 9 numbers of key points (kpt_shape): 11 fields" in said
