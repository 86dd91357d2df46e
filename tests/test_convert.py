"""Files into crops: every frame, every depth, what is no crop, and whose it is."""

import io
import json
import tarfile

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, FileMetaDataset
from pydicom.dataset import FileDataset
from pydicom.uid import DigitalIntraOralXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from data_shards.inspect.verify import verify
from data_shards.pack.crop import CropError, Rules, crop_of
from data_shards.pack.crop_job import _member
from data_shards.pack.pipeline import PackConfig, pack
from data_shards.pseudonyms import Key, locate, table_beside
from data_shards.shards.shard_set import ShardSet
from data_shards.shards.stream import Stream

KEY = Key(b"a public key for tests", None)


def scan(seed, shape=(120, 90), top=255):
    coarse = np.random.default_rng(seed).random((12, 9)).astype(np.float32)
    smooth = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
    return np.rint(smooth / smooth.max() * top).astype(np.uint8 if top < 256 else np.uint16)


def pages(path, *arrays):
    images = [Image.fromarray(a) for a in arrays]
    images[0].save(path, save_all=True, append_images=images[1:])


def dicom(pixels, patient):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalIntraOralXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset("", Dataset(), file_meta=meta, preamble=bytes(128))
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.PatientID, header.Modality, header.PhotometricInterpretation = patient, "IO", "MONOCHROME2"
    header.Rows, header.Columns, header.SamplesPerPixel = *pixels.shape, 1
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.PixelData = pixels.astype("<u2").tobytes()
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def packed(source, out, **options):
    return pack(PackConfig([source], out, **{"key": KEY.secret, "quiet": True, **options}))


def metas(folder):
    samples = ShardSet(folder)
    return [samples.meta(i) for i in range(len(samples))]


def test_every_page_of_a_file_of_crops_is_one(tmp_path):
    (tmp_path / "in").mkdir()
    pages(tmp_path / "in" / "three.tif", scan(1), scan(2), scan(3))
    pages(tmp_path / "in" / "one.tif", scan(4))
    (tmp_path / "key").write_bytes(KEY.secret)
    manifest = packed(tmp_path / "in", tmp_path / "out", key=tmp_path / "key")
    assert manifest["ledgers"] == {
        "files": {"seen": 2, "used": 2, "rejected": 0},
        "radiographs": {"seen": 4, "used": 4, "rejected": 0},
        "boxes": {"seen": 4, "used": 4, "rejected": 0},
    }
    found = metas(tmp_path / "out")
    assert sorted(m.get("frame", 0) for m in found) == [0, 0, 1, 2]
    later = next(m for m in found if m.get("frame") == 2)
    assert later["radiograph"] == KEY.id("radiograph", KEY.id("radiograph", "in/three.tif"), "2")
    for id_ in (later["id"], later["radiograph"]):
        assert locate(table_beside(tmp_path / "key"), id_)[0][1].endswith("three.tif (image 3 in it)")
    samples = ShardSet(tmp_path / "out")
    pixels = next(samples.image(i) for i in range(4) if samples.meta(i) == later)
    assert np.array_equal(pixels, scan(3))
    assert verify(tmp_path / "out", quiet=True) == []


def test_boxes_are_of_a_files_first_page(tmp_path):
    (tmp_path / "in").mkdir()
    pages(tmp_path / "in" / "two.tif", scan(1), scan(2))
    (tmp_path / "in" / "two.txt").write_text("0 .5 .5 .5 .5\n")
    manifest = packed(tmp_path / "in", tmp_path / "out")
    assert manifest["ledgers"]["radiographs"] == {"seen": 2, "used": 1, "rejected": 1}
    assert list(manifest["reasons"]["radiographs"]) == [
        "boxes belong to the first image of a file of several: pack this one as a file of its own"
    ]
    assert manifest["ledgers"]["files"] == {"seen": 2, "used": 2, "rejected": 0}
    assert len(metas(tmp_path / "out")) == 1


def test_deep_pixels_are_kept_if_asked_for(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(4):
        Image.fromarray(scan(i, top=4095)).save(tmp_path / "in" / f"{i}.png")
    Image.fromarray(scan(9)).save(tmp_path / "in" / "shallow.png")
    manifest = packed(tmp_path / "in", tmp_path / "deep", depth=16)
    samples = ShardSet(tmp_path / "deep")
    by_id = {KEY.id("file", f"in/{i}.png"): scan(i, top=4095) for i in range(4)}
    full = []
    for i in range(5):
        meta = samples.meta(i)
        if meta["source"] in by_id:
            assert (meta["bits"], meta["source_bits"]) == (12, 12)
            expected = np.rint(by_id[meta["source"]] * (65535 / 4095))
            assert np.array_equal(samples.image(i), expected)
            full.append(by_id[meta["source"]] / 4095)
        else:
            assert (meta["bits"], meta["source_bits"]) == (8, 8)
            full.append(scan(9) / 255)
    values = np.concatenate([f.ravel() for f in full])
    assert manifest["statistics"]["pixel_mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert manifest["statistics"]["pixel_std"] == pytest.approx(values.std(), abs=1e-6)
    assert verify(tmp_path / "deep", quiet=True) == []
    stream = Stream([samples], weights=None, seed=0)  # what training reads
    assert {stream.image(a).dtype for a in stream.addresses(0, 5)} == {np.dtype(np.uint16), np.dtype(np.uint8)}
    packed(tmp_path / "in", tmp_path / "shallow")
    shallow = ShardSet(tmp_path / "shallow")
    assert {(m["bits"], m["source_bits"]) for m in metas(tmp_path / "shallow")} == {(8, 12), (8, 8)}
    assert all(shallow.image(i).dtype == np.uint8 and shallow.image(i).max() > 250 for i in range(5))


def test_a_dicom_header_says_whose_it_is_and_nothing_else_leaves_it(tmp_path):
    (tmp_path / "in").mkdir()
    for i, patient in enumerate(["Zebulon-17", "Zebulon-17", "Zebulon-18", ""]):
        (tmp_path / "in" / f"{i}").write_bytes(dicom(scan(i, top=4095), patient))
    (tmp_path / "key").write_bytes(KEY.secret)
    manifest = packed(tmp_path / "in", tmp_path / "out", key=tmp_path / "key")
    assert manifest["statistics"]["patients"] == 3
    found = {m["source"]: m["patient"] for m in metas(tmp_path / "out")}
    whose = [found[KEY.id("file", f"in/{i}")] for i in range(4)]
    assert whose[0] == whose[1]
    assert whose[3] == KEY.id("patient", "in/3")
    for path in [*(tmp_path / "out").iterdir(), table_beside(tmp_path / "key")]:
        assert b"Zebulon" not in path.read_bytes()
    assert {kind for kind, _ in locate(table_beside(tmp_path / "key"), whose[0])} == {"patient"}
    packed(tmp_path / "in", tmp_path / "pattern", patient="([0-9])")
    assert len({m["patient"] for m in metas(tmp_path / "pattern")}) == 4


@pytest.mark.parametrize(
    ("crop", "words"),
    [
        (np.full((50, 40), 7, np.uint8), "constant"),
        (np.random.default_rng(0).normal(128, 1.5, (50, 40)).astype(np.uint8), "blank: its pixels vary by less than"),
        (scan(0, (400, 12)), "over 10 times as long as wide"),
        (scan(0, (12, 400)), "over 10 times as long as wide"),
        (scan(0, (5, 40)), "under 8 pixels on a side"),
    ],
)
def test_what_is_no_crop(tmp_path, crop, words):
    (tmp_path / "in").mkdir()
    Image.fromarray(crop).save(tmp_path / "in" / "bad.png")
    Image.fromarray(scan(1)).save(tmp_path / "in" / "good.png")
    manifest = packed(tmp_path / "in", tmp_path / "out")
    assert [words in reason for reason in manifest["reasons"]["boxes"]] == [True]
    assert manifest["ledgers"]["boxes"] == {"seen": 2, "used": 1, "rejected": 1}


def test_rules_count_in_full_scale_and_square_pixels():
    noise = np.random.default_rng(0).normal(2000, 30, (50, 40)).astype(np.uint16)
    box = (0.0, 0.0, 40.0, 50.0)
    with pytest.raises(CropError, match="blank"):
        crop_of(noise, 12, box, 1.0, Rules())
    assert crop_of(noise, 12, box, 1.0, Rules(min_contrast=0.005)).shape == (50, 40)
    with pytest.raises(CropError, match="as long as wide"):
        crop_of(scan(0, (50, 40)), 8, box, 15.0, Rules())


def test_large_crops_are_shrunk_by_areas(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(scan(0, (400, 300))).save(tmp_path / "in" / "a.png")
    packed(tmp_path / "in", tmp_path / "out", max_side=200)
    crop = ShardSet(tmp_path / "out").image(0)
    expected = scan(0, (400, 300)).reshape(200, 2, 150, 2).mean((1, 3))
    assert crop.shape == (200, 150)
    assert np.abs(crop - expected).max() <= 0.5
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["max_side"] == 200


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 100_000])
def test_members_are_tarfiles(size):
    content = np.random.default_rng(size).bytes(size)
    info = tarfile.TarInfo("0123456789abcdef.json")
    info.size = size
    expected = info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-size % 512)
    assert _member("0123456789abcdef.json", content) == expected


def test_cubic_overshoot_stays_in_the_depth():
    edge = np.zeros((40, 40), np.uint16)
    edge[:, 20:] = 4095
    crop = crop_of(edge, 12, (0.0, 0.0, 40.0, 40.0), 1.767, Rules())
    assert crop.max() == 4095
