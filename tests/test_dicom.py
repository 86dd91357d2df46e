"""DICOM radiographs against the formulas of PS3.3 C.11, pydicom's own functions, and files of every transfer syntax."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest import mock

import cv2
import gdcm
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import Dataset, FileMetaDataset, Sequence
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from data_shards.decode import dicom_bytes, dicom_luts, jpeg_lossless
from data_shards.decode.radiograph import RadiographError, decode, frames, looks_like_image

PANORAMIC = "1.2.840.10008.5.1.4.1.1.1.1"  # digital X-ray, for presentation
TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
NAME = "Zebulon-Quasimodo"
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def ramp(bits=12, shape=(40, 56), signed=False):
    values = np.linspace(0, (1 << bits) - 1, shape[0] * shape[1]).reshape(shape).astype(np.int32)
    return values - (1 << bits - 1) if signed else values


def dataset(values, bits=12, signed=False, syntax=ExplicitVRLittleEndian, **elements):
    """`values` [H, W], [H, W, 3], or [frames, H, W] where NumberOfFrames is given."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, elements.get("SOPClassUID", PANORAMIC)
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    made = Dataset()
    made.file_meta = meta
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = meta.MediaStorageSOPClassUID, "1.2.3.4", "PX"
    made.PatientName, made.PatientID = NAME, "4711"
    shape = values.shape[1:] if "NumberOfFrames" in elements else values.shape
    made.Rows, made.Columns = shape[:2]
    made.SamplesPerPixel = 3 if len(shape) == 3 else 1
    if len(shape) == 3:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
    made.BitsAllocated = 8 if bits <= 8 else 16
    made.BitsStored, made.HighBit, made.PixelRepresentation = bits, bits - 1, int(signed)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = (values & (1 << bits) - 1).astype(f"{order}u{made.BitsAllocated // 8}").tobytes()
    made.PixelData = raw + b"\0" * (len(raw) % 2)
    made["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def saved(made):
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(values, bits=12, **options):
    return saved(dataset(values, bits, **options))


def lut(values, first, bits, vr="US"):
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(values), first, bits])
    item.add_new("LUTData", "US", [int(v) for v in values])
    return Sequence([item])


def reason(raw, **options):
    with pytest.raises(RadiographError) as told:
        decode(raw, **options)
    return str(told.value)


# -- transfer syntaxes --


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (12, True), (15, False)])
def test_uncompressed_and_deflated(syntax, bits, signed):
    values = ramp(bits, signed=signed)
    found = decode(dicom(values, bits, signed=signed, syntax=syntax), depth=16)
    assert found.bits == bits
    assert np.array_equal(found.pixels, values + ((1 << bits - 1) if signed else 0))
    eight = decode(dicom(values, bits, signed=signed, syntax=syntax)).pixels
    assert eight.dtype == np.uint8
    assert np.array_equal(eight, found.pixels >> bits - 8)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (12, True), (16, False)])
def test_lossless_compression_by_pydicom(syntax, bits, signed):
    values = ramp(bits, signed=signed)
    made = dataset(values, bits, signed=signed)
    made.compress(syntax, generate_instance_uid=False)
    found = decode(saved(made), depth=16)
    assert found.bits == bits
    assert np.array_equal(found.pixels, values + ((1 << bits - 1) if signed else 0))


GDCM = {
    "JPEGLosslessProcess14": (16, 0),
    "JPEGLosslessProcess14_1": (16, 0),
    "JPEGLSLossless": (16, 0),
    "JPEG2000Lossless": (16, 0),
    "JPEG2000": (12, 40),
    "JPEGBaselineProcess1": (8, 3),
    "RLELossless": (16, 0),
}


@pytest.mark.parametrize("name", GDCM)
def test_compression_by_gdcm(name, tmp_path):
    most, loss = GDCM[name]
    for bits in {min(most, b) for b in (8, 12, 16)} if most != 12 else (12,):
        values = ramp(bits)
        (tmp_path / "plain").write_bytes(dicom(values, bits))
        reader = gdcm.ImageReader()
        reader.SetFileName(str(tmp_path / "plain"))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(tmp_path / "compressed"))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        raw = (tmp_path / "compressed").read_bytes()
        assert pydicom.dcmread(io.BytesIO(raw)).file_meta.TransferSyntaxUID.is_compressed
        found = decode(raw, depth=16)
        assert found.bits == bits
        assert np.abs(found.pixels.astype(int) - values).max() <= loss


def jpeg(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=95, **options)
    return buffer.getvalue()


def test_baseline_jpeg_as_pillow_reads_it():
    gray = ramp(8).astype(np.uint8)
    made = dataset(gray, 8, syntax=JPEGBaseline8Bit, PixelData=encapsulate([jpeg(gray)]))
    assert np.array_equal(decode(saved(made)).pixels, np.asarray(Image.open(io.BytesIO(jpeg(gray)))))
    colour = np.stack([gray, gray[::-1], gray[:, ::-1]], -1)
    made = dataset(colour, 8, syntax=JPEGBaseline8Bit, PixelData=encapsulate([jpeg(colour)]))
    made.PhotometricInterpretation = "YBR_FULL_422"
    luma = np.asarray(Image.open(io.BytesIO(jpeg(colour))).convert("L")).astype(int)
    assert np.abs(decode(saved(made)).pixels - luma).max() <= 1


def extended():
    """pydicom's file of extended JPEG, as a digital radiograph."""
    made = pydicom.dcmread(TEST_FILES / "JPGExtended.dcm")
    made.Modality, made.SOPClassUID, made.ConversionType = "DX", PANORAMIC, "DI"
    return saved(made)


def test_extended_jpeg_of_twelve_bits():
    found = decode(extended(), depth=16)
    assert found.bits == 12
    assert found.pixels.shape == (1024, 256)
    assert found.pixels[420, 140] == 244  # the values that pydicom's own tests know this file by
    assert found.pixels[230, 120] == 95


def test_lossless_jpeg_of_colour():
    found, theirs = (
        decode((TEST_FILES / name).read_bytes(), burned_in="keep").pixels
        for name in ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm")
    )
    assert np.array_equal(found, theirs)


def test_an_image_that_ends_gdcm_or_its_end_between_two_images_does_no_harm(capfd):
    good = extended()
    wanted = decode(good).pixels
    bad = bytearray(good)
    start = good.index(b"\xff\xd8\xff\xc1")
    for at, value in ((33, 255), (76, 0), (84, 12), (91, 78), (3270, 12), (6798, 135)):  # GDCM 3.2.6 aborts
        bad[start + at] = value
    with contextlib.suppress(RadiographError):
        decode(bytes(bad))
    assert np.array_equal(decode(good).pixels, wanted)
    jpeg_lossless._process.child.kill()
    assert np.array_equal(decode(good).pixels, wanted)
    with pytest.raises(RadiographError, match="damaged"):
        decode(good[:6000])
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_codestream_of_another_size_than_the_header_is_refused_before_it_is_decoded():
    for syntax in (JPEG2000Lossless, JPEGLSLossless):
        made = dataset(ramp())
        made.compress(syntax, generate_instance_uid=False)
        made.Rows = 20
        assert "another size" in reason(saved(made))


def test_without_decoders_the_reason_names_the_extra(tmp_path):
    for syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        made = dataset(ramp())
        made.compress(syntax, generate_instance_uid=False)
        (tmp_path / syntax).write_bytes(saved(made))
    (tmp_path / JPEGExtended12Bit).write_bytes(extended())
    code = (
        "import sys; from pathlib import Path\n"
        "for name in ('gdcm', 'pylibjpeg', 'openjpeg', 'jpeg_ls'): sys.modules[name] = None\n"
        "from data_shards.decode.radiograph import frames\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: print(path.name, [getattr(f, 'bits', f) for f in frames(path.read_bytes())])\n"
        "    except ValueError as error: print(path.name, error)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    told = dict(line.split(" ", 1) for line in ran.stdout.splitlines())
    assert told[RLELossless] == told[JPEG2000Lossless] == "[12]"
    for syntax, name in ((JPEGLSLossless, "jpeg-ls"), (JPEGExtended12Bit, "jpeg-extended")):
        assert name in told[syntax]
        assert "tooth-foundations[dicom]" in told[syntax]
    assert ran.stderr == ""


# -- recognition --


@pytest.mark.parametrize("syntax", NATIVE[:3])
def test_without_preamble_or_file_meta(syntax):
    values = ramp()
    whole = dicom(values, syntax=syntax)
    group_length = int.from_bytes(whole[140:144], "little")
    for raw in (whole[132:], whole[144 + group_length :]):
        assert looks_like_image(raw[:4096], "IM0001")
        assert np.array_equal(decode(raw, depth=16).pixels, values)


def test_compressed_without_file_meta():
    values = ramp()
    for syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        made = dataset(values)
        made.compress(syntax, generate_instance_uid=False)
        whole = saved(made)
        raw = whole[144 + int.from_bytes(whole[140:144], "little") :]
        assert np.array_equal(decode(raw, depth=16).pixels, values), syntax


def test_other_files_are_not_taken_for_dicom():
    for head in (b"\x08\0 what", b"\x02\0\0\0UL\xff\xff", b"image,x0,y0,x1,y1\n", b"\0" * 4096, b"0 0.5 0.5 0.1 0.1\n"):
        assert not looks_like_image(head * 20, "a")
    assert looks_like_image(b"anything", "A.DCM")  # then reading says what is wrong
    assert "not an image" in reason(b"anything")


# -- gray: the formulas of PS3.3 C.11, in float64 --


def linear(x, c, w):
    """C.11.2.1.2.1, as its pseudo-code says it."""
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    if x > c - 0.5 + (w - 1) / 2:
        return 1.0
    return (x - (c - 0.5)) / (w - 1) + 0.5


def exact(x, c, w):
    """C.11.2.1.3.2."""
    return 0.0 if x <= c - w / 2 else 1.0 if x > c + w / 2 else (x - c) / w + 0.5


def sigmoid(x, c, w):
    """C.11.2.1.3.1."""
    return 1 / (1 + np.exp(-4 * (x - c) / w))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # in pydicom
@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(8, 15),
    signed=st.booleans(),
    slope=st.floats(0.1, 4),
    intercept=st.floats(-2000, 2000),
    centre=st.floats(-3000, 6000),
    width=st.floats(1, 9000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    inverted=st.booleans(),
)
def test_rescale_and_window(bits, signed, slope, intercept, centre, width, function, inverted):
    slope, intercept, centre, width = (float(f"{v:.6g}") for v in (slope, intercept, centre, width))
    values = ramp(bits, (4, 8), signed)
    made = dataset(values, bits, signed=signed, RescaleSlope=slope, RescaleIntercept=intercept)
    made.WindowCenter, made.WindowWidth, made.VOILUTFunction = [centre, 1], [width, 2], function
    made.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    with mock.patch.object(dicom_luts, "MIN_CLIPPED", 1):  # no window is set aside here
        found = decode(saved(made), depth=16)
    top = (1 << bits) - 1
    with np.errstate(over="ignore"):
        formula = {"LINEAR": linear, "LINEAR_EXACT": exact, "SIGMOID": sigmoid}[function]
        share = np.array([formula(slope * v + intercept, centre, width) for v in values.ravel().tolist()])
    wanted = (1 - share if inverted else share).reshape(values.shape) * top
    assert found.bits == bits
    assert np.abs(found.pixels - wanted).max() <= 0.5 + 1e-6
    if width > 1:  # pydicom divides by zero at 1
        theirs = apply_windowing(apply_modality_lut(values, made), made)
        low, high = sorted(
            slope * v + intercept for v in ((-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, top))
        )
        theirs = (theirs - low) / (high - low)
        assert np.abs(found.pixels - (1 - theirs if inverted else theirs) * top).max() <= 0.5 + 1e-3


def test_of_several_windows_the_first_counts_and_a_void_one_does_not():
    values = ramp()
    first = decode(dicom(values, WindowCenter=[2000, 10], WindowWidth=[3000, 5]), depth=16).pixels
    assert np.array_equal(first, decode(dicom(values, WindowCenter=2000, WindowWidth=3000), depth=16).pixels)
    assert not np.array_equal(first, values)
    for width in (0, -5, 0.5):
        assert np.array_equal(decode(dicom(values, WindowCenter=100, WindowWidth=width), depth=16).pixels, values)


def test_negative_slope_turns_gray_around():
    values = ramp()
    found = decode(dicom(values, RescaleSlope=-1, RescaleIntercept=4095), depth=16)
    assert np.array_equal(found.pixels, 4095 - values)


@pytest.mark.parametrize("signed", [False, True])
def test_voi_lut(signed):
    values = ramp(12, signed=signed)
    first = -1800 if signed else 200
    curve = (np.linspace(0, 1, 3500) ** 0.5 * 65535).astype(int)
    made = dataset(values, signed=signed, VOILUTSequence=lut(curve, first, 16, "SS" if signed else "US"))
    made.WindowCenter, made.WindowWidth = 10, 20  # a LUT comes before a window
    found = decode(saved(made), depth=16)
    theirs = apply_voi(values, made).astype(np.float64) / 65535 * 4095
    assert np.abs(found.pixels - theirs).max() <= 0.5 + 1e-9
    by_hand = curve[np.clip(values - first, 0, len(curve) - 1)] / 65535 * 4095
    assert np.abs(found.pixels - by_hand).max() <= 0.5 + 1e-9


def test_luts_of_fewer_bits_than_they_declare_or_of_eight_bits():
    values = ramp()
    curve = np.arange(4096)[::-1]
    for bits, entries in ((16, curve), (12, curve), (8, curve >> 4)):
        found = decode(dicom(values, VOILUTSequence=lut(entries, 0, bits)), depth=16)
        assert np.abs(found.pixels.astype(int) - (4095 - values)).max() <= (16 if bits == 8 else 0), bits


def test_modality_lut_comes_before_the_window():
    values = ramp()
    curve = (np.linspace(0, 1, 4096) ** 2 * 4095).astype(int)
    made = dataset(values, ModalityLUTSequence=lut(curve, 0, 16))
    assert np.array_equal(apply_modality_lut(values, made), curve[values])
    assert np.array_equal(decode(saved(made), depth=16).pixels, curve[values])
    made.WindowCenter, made.WindowWidth, made.VOILUTFunction = 1000, 3000, "LINEAR_EXACT"
    wanted = np.clip((curve[values] - 1000) / 3000 + 0.5, 0, 1) * 4095
    assert np.abs(decode(saved(made), depth=16).pixels - wanted).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_polarity(photometric, shape, inverted):
    made = dataset(ramp(), PhotometricInterpretation=photometric)
    if shape:
        made.PresentationLUTShape = shape
    assert np.array_equal(decode(saved(made), depth=16).pixels, 4095 - ramp() if inverted else ramp())


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_background_and_has_no_say(photometric, signed, syntax):
    values = ramp(10)
    values[:5], values[-5:] = (-32768, -32000) if signed else (65535, 65000)
    made = dataset(values, 16, signed=signed, syntax=syntax, PhotometricInterpretation=photometric)
    vr = "SS" if signed else "US"
    made.add_new("PixelPaddingValue", vr, -32000 if signed else 65000)
    made.add_new("PixelPaddingRangeLimit", vr, -32768 if signed else 65535)
    found = decode(saved(made), depth=16)
    assert found.bits == 10
    assert not found.pixels[:5].any()
    assert not found.pixels[-5:].any()
    inner = values[5:-5]
    assert np.array_equal(found.pixels[5:-5], 1023 - inner if photometric == "MONOCHROME1" else inner)


# -- depth and layout of stored values --


@pytest.mark.parametrize("bits", [1, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15])
def test_declared_bits_are_the_depth(bits):
    values = ramp(bits) // 2  # the declared depth counts, not the maximum
    found = decode(dicom(values, bits), depth=16)
    assert found.bits == max(8, bits)
    top = (1 << found.bits) - 1
    assert np.abs(found.pixels - values * top / ((1 << bits) - 1)).max() <= 0.5


@pytest.mark.parametrize(("deep", "found_bits"), [(8, 8), (9, 10), (12, 12), (14, 14), (15, 16), (16, 16)])
def test_sixteen_of_sixteen_bits_say_nothing_so_the_maximum_decides(deep, found_bits):
    found = decode(dicom(ramp(deep), 16))
    assert found.bits == found_bits
    assert np.array_equal(found.pixels, ramp(deep) >> found_bits - 8)


def test_unused_bits_and_values_that_do_not_start_at_the_lowest():
    values = ramp()
    made = dataset(values, PixelData=(values.astype("<u2") | 0xF000).tobytes())  # overlays lay in there once
    assert np.array_equal(decode(saved(made), depth=16).pixels, values)
    made = dataset(values, HighBit=15, PixelData=(values.astype("<u2") << 4).tobytes())
    assert np.array_equal(decode(saved(made), depth=16).pixels, values)


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
def test_a_graphic_in_the_unused_bits_is_not_shown(syntax):
    """It may spell a name; a compressed image of more bits than declared, and without a graphic, is taken whole."""
    values = ramp()
    drawn = values.astype("<u2").copy()
    drawn[2:5] |= 0x8000
    for graphic in (True, False):
        made = dataset(drawn, 16)
        if syntax:
            made.compress(syntax)
        made.BitsStored, made.HighBit = 12, 11
        if graphic:
            made.add_new(0x60000102, "US", 15)
        found = decode(saved(made), depth=16)
        if graphic or syntax != JPEG2000Lossless:
            assert found.bits == 12
            assert np.array_equal(found.pixels, values)
        else:
            assert found.bits == 16


def test_colour_becomes_luma():
    generator = np.random.default_rng(0)
    for bits in (8, 12, 16):
        colour = generator.integers(0, (1 << bits) - (1 << bits - 3), (12, 20, 3))
        luma = colour @ np.array([0.299, 0.587, 0.114])
        found = decode(dicom(colour // (4 if bits == 12 else 1), bits), depth=16)
        assert found.bits == bits
        assert np.abs(found.pixels - luma / (4 if bits == 12 else 1)).max() <= 2
    eight = generator.integers(0, 256, (12, 20, 3)).astype(np.uint8)
    ybr = cv2.cvtColor(eight, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    found = decode(dicom(ybr, 8, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(found.pixels.astype(int) - ybr[..., 0]).max() <= 3  # where a colour was out of gamut


def test_palettes():
    indices = ramp(8)
    made = dataset(indices, 8, PhotometricInterpretation="PALETTE COLOR")
    red, green, blue = (np.roll(np.arange(256), 17 * i) * 257 for i in range(3))
    for colour, curve in (("Red", red), ("Green", green), ("Blue", blue)):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(made, f"{colour}PaletteColorLookupTableData", curve.astype("<u2").tobytes())
    found = decode(saved(made), depth=16)
    rgb = apply_color_lut(indices, made)
    assert np.array_equal(rgb, np.stack([c[indices] for c in (red, green, blue)], -1))
    assert np.abs(found.pixels - rgb @ np.array([0.299, 0.587, 0.114])).max() <= 1


def test_every_frame_comes_and_a_lost_one_does_not_lose_the_others():
    values = np.stack([ramp() // n for n in (1, 2, 3)])
    whole = dicom(values, NumberOfFrames=3)
    assert [np.array_equal(f.pixels, v) for f, v in zip(frames(whole, depth=16), values, strict=True)] == [True] * 3
    made = dataset(values, NumberOfFrames=3)
    made.compress(JPEG2000Lossless, generate_instance_uid=False)
    streams = list(generate_frames(made.PixelData, number_of_frames=3))
    streams[1] = streams[1][:60] + b"\0" * (len(streams[1]) - 60)
    made.PixelData = encapsulate(streams)
    found = list(frames(saved(made), depth=16))
    assert isinstance(found[1], RadiographError)
    assert np.array_equal(found[0].pixels, values[0])
    assert np.array_equal(found[2].pixels, values[2])


@pytest.mark.parametrize("syntax", [None, JPEG2000Lossless])
def test_more_frames_than_are_there_are_told_once(syntax):
    made = dataset(np.stack([ramp()] * 2), NumberOfFrames=2)
    if syntax:
        made.compress(syntax)
    made.NumberOfFrames = 2_000_000
    found = list(frames(saved(made)))
    assert [isinstance(f, RadiographError) for f in found] == [False, False, True]
    assert "more images than the file holds" in str(found[-1])


def test_images_after_the_first_thousand_are_told():
    small = np.zeros((1002, 4, 4), np.uint16)
    found = list(frames(saved(dataset(small, NumberOfFrames=1002))))
    assert len(found) == 1001
    assert "first 1000" in str(found[-1])


# -- what is refused --


@pytest.mark.parametrize("modality", ["IO", "PX", "DX", "CR", "RG"])
def test_radiographs_are_taken(modality):
    found = decode(dicom(ramp(), Modality=modality))
    assert found.facts["modality"] == modality


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "XC", "XA", "MG", "OT"])
def test_other_modalities_are_refused_by_name(modality):
    assert f"modality is {modality} (" in reason(dicom(ramp(), Modality=modality))


def test_a_word_that_is_no_modality_stays_inside():
    told = reason(dicom(ramp(), Modality="ZEBULON"))
    assert "ZEBULON" not in told
    assert "PX" in told
    assert "without a modality" in reason(dicom(ramp(), Modality="", SOPClassUID="1.2.3"))
    assert decode(dicom(ramp(), Modality="", SOPClassUID="1.2.840.10008.5.1.4.1.1.1.3")).bits == 12  # intra-oral


@pytest.mark.parametrize(
    "elements",
    [
        {"BurnedInAnnotation": "YES"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"},
        {"ConversionType": "WSD"},
        {"ConversionType": ["DI", "WSD"]},
        {"BurnedInAnnotation": ["NO", "YES"]},
        {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
        {"ConversionType": "SI"},
        {"ConversionType": "DF"},
    ],
)
def test_names_in_pixels_are_refused_unless_asked_for(elements):
    raw = dicom(ramp(), **elements)
    assert "--burned-in keep" in reason(raw)
    assert np.array_equal(decode(raw, depth=16, burned_in="keep").pixels, ramp())
    assert decode(dicom(ramp(), BurnedInAnnotation="NO", ConversionType="DI")).facts["burned_in"] == "NO"


def test_objects_without_an_image_have_their_own_reasons():
    made = dataset(ramp(), Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(made, keyword)
    assert "without an image" in reason(saved(made))
    made = dataset(ramp())
    del made.PixelData
    assert "cut short" in reason(saved(made))
    for name in ("DICOMDIR", "DICOMDIR-implicit"):
        assert "DICOMDIR" in reason((TEST_FILES / "dicomdirtests" / name).read_bytes())


def test_bombs_are_refused_before_they_are_decoded(monkeypatch):
    made = dataset(ramp())
    made.Rows = made.Columns = 30_000
    assert "bomb" in reason(saved(made))
    monkeypatch.setattr(dicom_bytes, "MAX_INFLATED", 20_000)
    zeros = dataset(ramp(), syntax=DeflatedExplicitVRLittleEndian)
    zeros.add_new(0x00990010, "LO", "X")
    zeros.add_new(0x00991001, "OB", bytes(20_000))
    told = saved(zeros)
    assert "bomb" in reason(told)
    assert told[132:136] == b"\2\0\0\0"
    assert "bomb" in reason(told[:132] + told[144:])  # no group length, which readers can do without


# -- what leaves the header --


@pytest.mark.parametrize(
    ("elements", "aspect"),
    [
        ({}, 1.0),
        ({"PixelAspectRatio": [2, 3]}, 1.5),
        ({"PixelSpacing": [0.1, 0.15]}, 1.5),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, 0.5),
        ({"NominalScannedPixelSpacing": [0.2, 0.1]}, 0.5),
        ({"PixelSpacing": [0.1, 0.1], "PixelAspectRatio": [2, 3]}, 1.0),
        ({"PixelSpacing": [0, 0], "PixelAspectRatio": [1, 2]}, 2.0),
        ({"PixelAspectRatio": [0, 1]}, 1.0),
    ],
)
def test_pixel_aspect_is_width_over_height(elements, aspect):
    assert decode(dicom(ramp(), **elements)).pixel_aspect == pytest.approx(aspect)


@pytest.mark.parametrize(
    ("owner", "issuer", "wanted"),
    [
        ("4711", None, "4711"),
        (" 4711 ", "Clinic", "4711"),
        ("P 77-a", None, "p77a"),
        ("9", None, "9"),
        ("11", None, "11"),
        ("", "Clinic", ""),
        ("0000", None, ""),
        ("XXXX", None, ""),  # what some exports put for every patient
        ("--", None, ""),
        ("Anonymous", None, ""),
        ("NO ID", None, ""),
    ],
)
def test_patient(owner, issuer, wanted):
    made = dataset(ramp(), PatientID=owner)
    if issuer:
        made.IssuerOfPatientID = issuer
    assert decode(saved(made)).patient == wanted


def test_facts():
    made = dataset(
        ramp(), KVP=70, XRayTubeCurrent=8, ExposureTime=14100, PixelSpacing=[0.1, 0.1], DetectorType="DIRECT"
    )
    assert decode(saved(made)).facts == {
        "format": "dicom",
        "compression": "none",
        "modality": "PX",
        "photometric": "MONOCHROME2",
        "pixel_spacing_mm": [0.1, 0.1],
        "kvp": 70,
        "tube_current_ma": 8,
        "exposure_time_ms": 14100,
        "bits_allocated": 16,
        "bits_stored": 12,
        "detector_type": "DIRECT",
    }


TEXTS = (
    *("PatientName", "PatientBirthDate", "StudyDate", "InstitutionName", "DetectorType", "BodyPartExamined"),
    *("ImageLaterality", "PresentationIntentType", "ImageComments", "StudyID", "KVP", "ExposureTime", "PixelSpacing"),
    *("LossyImageCompression", "PixelIntensityRelationship", "DistanceSourceToDetector", "VOILUTFunction"),
)


@settings(max_examples=25, deadline=None)
@given(planted=st.dictionaries(st.sampled_from(TEXTS), st.sampled_from([NAME.upper(), "19610412", "4711-0815"])))
def test_no_text_and_no_unlikely_number_becomes_a_fact(planted):
    made = dataset(ramp())
    with pydicom.config.disable_value_validation():
        for keyword, value in planted.items():
            try:
                setattr(made, keyword, value)
            except (ValueError, TypeError):  # pydicom does not write letters as numbers
                continue
        raw = saved(made)
    told = repr(decode(raw).facts)
    assert all(value not in told for value in (NAME.upper(), "19610412", "4711", "0815"))


# -- damage --


def damaged(draw, raw):
    raw = bytearray(raw)
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=8)):
        raw[at] = value
    return bytes(raw[: draw(st.integers(0, len(raw)))] if draw(st.booleans()) else raw)


def samples():
    for syntax in (None, RLELossless, JPEG2000, JPEG2000Lossless, JPEGLSLossless):
        made = dataset(ramp(12, (40, 40)), WindowCenter=2000, WindowWidth=3000, RescaleSlope=1, RescaleIntercept=0)
        if syntax:
            options = {"j2k_cr": [4]} if syntax == JPEG2000 else {}
            made.compress(syntax, generate_instance_uid=False, **options)
        yield saved(made)
    yield dicom(ramp(12, (40, 40)), syntax=DeflatedExplicitVRLittleEndian)
    yield extended()


SAMPLES = list(samples())


def survive(data):
    raw = damaged(data.draw, data.draw(st.sampled_from(SAMPLES)))
    try:
        found = list(frames(raw))
    except RadiographError as error:
        found = [error]
    for frame in found:
        assert NAME not in str(frame) if isinstance(frame, RadiographError) else frame.pixels.dtype == np.uint8


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_gives_a_reason_or_an_image(data):
    survive(data)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(data=st.data())
def test_damage_gives_a_reason_or_an_image_over_and_over(data):
    survive(data)


def test_every_cut_is_told(capfd):
    for raw in SAMPLES:
        for end in range(0, len(raw) - 8, max(1, len(raw) // 60)):
            try:
                assert all(isinstance(f, RadiographError) for f in frames(raw[:end])), (end, len(raw))
            except RadiographError:
                continue
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.filterwarnings("ignore:Unknown encoding")  # of writing it
def test_nothing_is_printed_about_a_broken_header(capfd, caplog):
    made = dataset(ramp(), SpecificCharacterSet="ISO_IR 999")
    with pydicom.config.disable_value_validation():
        made.StudyDate, made.PatientBirthDate, made.AccessionNumber = NAME, NAME, NAME * 10
        raw = saved(made)
    caplog.clear()
    capfd.readouterr()
    decode(raw)
    captured = capfd.readouterr()
    assert captured.out + captured.err + caplog.text == ""
