"""DICOM windows and VOI LUTs that hide most of an image, and those that rightly clip its background."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from test_dicom import dataset, dicom, lut, saved

from data_shards.decode.radiograph import decode
from data_shards.pack.pipeline import PackConfig, pack

SHAPE = (60, 80)


def tissue(low=600, high=3600, seed=0):
    return np.random.default_rng(seed).integers(low, high, SHAPE)


def with_air(share, air=60, **options):
    """Tissue whose upper rows, this share of all, are noisy air."""
    values = tissue(**options)
    rows = round(share * SHAPE[0])
    values[:rows] = np.random.default_rng(1).integers(0, air, (rows, SHAPE[1]))
    return values


def both(values, **elements):
    """The image with these elements, whether its window was set aside, and the image without a window."""
    found = decode(dicom(values, **elements), depth=16)
    stated = ("WindowCenter", "WindowWidth", "VOILUTSequence", "VOILUTFunction")
    full = decode(dicom(values, **{k: v for k, v in elements.items() if k not in stated}), depth=16)
    return found.pixels, found.facts.get("window"), full.pixels


EIGHT_BITS = {"WindowCenter": 128, "WindowWidth": 256}


@pytest.mark.parametrize(
    ("values", "elements"),
    [
        (tissue(), EIGHT_BITS),
        (tissue(), EIGHT_BITS | {"PhotometricInterpretation": "MONOCHROME1"}),
        (tissue(), {"WindowCenter": [128, 2048], "WindowWidth": [256, 4096]}),
        (tissue(), {"WindowCenter": 40000, "WindowWidth": 1000}),
        (tissue(), {"WindowCenter": -500, "WindowWidth": 400}),
        (tissue(), {"WindowCenter": 2048, "WindowWidth": 4096, "RescaleSlope": 16, "RescaleIntercept": 0}),
        (tissue(), EIGHT_BITS | {"VOILUTFunction": "SIGMOID"}),
        (tissue(), {"VOILUTSequence": lut(range(256), 0, 8)}),
        (with_air(0.6), EIGHT_BITS),
        (with_air(0.4, air=300), EIGHT_BITS | {"RescaleSlope": -1, "RescaleIntercept": 4095}),
    ],
)
def test_a_window_that_hides_most_of_the_image_is_set_aside(values, elements):
    pixels, window, full = both(values, **elements)
    assert window == "full range"
    assert np.array_equal(pixels, full)


def test_signed_pixels_under_a_window_of_unsigned_ones():
    made = dataset(tissue() - 2048, signed=True)
    made.WindowCenter, made.WindowWidth = 4000, 1000
    found = decode(saved(made), depth=16)
    assert found.facts["window"] == "full range"
    assert np.array_equal(found.pixels, tissue())


@pytest.mark.parametrize(
    ("values", "elements"),
    [
        (with_air(0.6, air=500), {"WindowCenter": 2100, "WindowWidth": 3000}),  # air becomes black
        (with_air(0.8), {"WindowCenter": 2100, "WindowWidth": 2600}),
        (4095 - with_air(0.6), {"WindowCenter": 2000, "WindowWidth": 3000, "PhotometricInterpretation": "MONOCHROME1"}),
        (np.where(with_air(0.5) < 60, 4095, tissue()), {"WindowCenter": 2100, "WindowWidth": 3000}),  # a collimator
        (tissue(), {"WindowCenter": 2100, "WindowWidth": 2300}),  # a quarter of the tissue
        (with_air(0.5), {"VOILUTSequence": lut([0] * 600 + list(range(0, 4096, 2)), 0, 12)}),
    ],
)
def test_a_window_that_clips_background_is_applied(values, elements):
    pixels, window, full = both(values, **elements)
    assert window is None
    assert not np.array_equal(pixels, full)


def test_a_pack_says_so_and_its_samples_record_it(tmp_path: Path, capsys):
    source = tmp_path / "clinic"
    source.mkdir()
    (source / "0.dcm").write_bytes(dicom(tissue(), **EIGHT_BITS))
    (source / "1.dcm").write_bytes(dicom(tissue(seed=1), WindowCenter=2100, WindowWidth=3600))
    (source / "boxes.csv").write_text("image,x0,y0,x1,y1\n0.dcm,10,10,40,50\n1.dcm,10,10,40,50\n")
    pack(PackConfig(sources=[str(source)], out=str(tmp_path / "out"), key=bytes(16), quiet=False, workers=1))
    said = capsys.readouterr().out
    assert "the DICOM window of 1 radiograph would make most of the image black or white" in said
    with tarfile.open(next((tmp_path / "out").glob("shard-*.tar"))) as tar:
        samples = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
    assert sorted(sample.get("window", "") for sample in samples) == ["", "full range"]
