"""Image files into gray: against files made by hand, tifffile, OpenCV and float64 formulas."""

import io
import struct
import zlib

import cv2
import numpy as np
import openjpeg
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.decode import bit_depth as depth
from data_shards.decode import radiograph, raster
from data_shards.decode.bit_depth import DEPTHS, depth_of, highest_eight
from data_shards.decode.radiograph import RadiographError, decode, frames, looks_like_image


def ramp(bits=8, shape=(40, 56)):
    kind = np.uint8 if bits <= 8 else np.uint16
    return np.linspace(0, (1 << bits) - 1, shape[0] * shape[1]).reshape(shape).astype(kind)


def saved(pixels, kind="png", **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()


def png(rows, bits, colour, *chunks):
    """A PNG of packed `rows` (bytes each), with further chunks before its pixels, by the specification."""
    width = len(rows[0]) * 8 // bits // {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts
    )


def deep_png(pixels, colour, *chunks):
    return png([row.astype(">u2").tobytes() for row in pixels], 16, colour, *chunks)


def luma(rgb):
    return rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def off(found, wanted):
    return np.abs(found.astype(np.float64) - wanted).max()


def turned(pixels):
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].T,
        8: np.rot90(pixels),
    }


def reason(raw):
    with pytest.raises(RadiographError) as told:
        decode(raw)
    return str(told.value)


# -- depth --


@given(st.integers(-40000, 70000), st.integers(0, 70000))
def test_depth_holds_the_range_and_no_smaller_one_does(lowest, length):
    highest = lowest + length

    def holds(bits):
        half = 1 << bits - 1
        return -half <= lowest and highest < half if lowest < 0 else highest < 1 << bits

    fitting = [bits for bits in DEPTHS if holds(bits)]
    if not fitting:
        with pytest.raises(RadiographError, match="16 bits"):
            depth_of(lowest, highest)
    else:
        assert depth_of(lowest, highest) == fitting[0]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_depth_16_keeps_all_bits_and_depth_8_the_highest(bits):
    for raw in (deep_png(ramp(bits), 0), tiff(ramp(bits).astype(np.uint16))):
        deep, eight = decode(raw, depth=16), decode(raw)
        assert (deep.bits, eight.bits) == (bits, bits)
        assert deep.pixels.dtype == (np.uint8 if bits == 8 else np.uint16)
        assert eight.pixels.dtype == np.uint8
        assert np.array_equal(deep.pixels, ramp(bits))
        assert np.array_equal(eight.pixels, np.floor(ramp(bits) / 2.0 ** (bits - 8)))
        assert np.array_equal(eight.pixels, highest_eight(deep.pixels, bits))


# -- PNG --


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits_fills_the_range(bits):
    values = np.random.default_rng(0).integers(0, 1 << bits, (12, 16))
    per_byte = 8 // bits
    shifts = bits * np.arange(per_byte)[::-1]
    rows = [(row.reshape(-1, per_byte) << shifts).sum(1).astype(np.uint8).tobytes() for row in values]
    assert np.array_equal(decode(png(rows, bits, 0)).pixels, values * (255 // ((1 << bits) - 1)))


def test_png_palette_with_and_without_transparency():
    palette = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
    rows = [row.tobytes() for row in ramp()]
    plain = png(rows, 8, 3, (b"PLTE", palette.tobytes()))
    assert off(decode(plain).pixels, luma(palette[ramp()])) <= 1
    alpha = np.arange(256).astype(np.uint8)
    seen = png(rows, 8, 3, (b"PLTE", palette.tobytes()), (b"tRNS", alpha.tobytes()))
    assert off(decode(seen).pixels, luma(palette[ramp()]) * alpha[ramp()] / 255) <= 1


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (16, 65535)])
def test_transparency_lies_over_black(bits, top):
    generator = np.random.default_rng(1)
    colour = generator.integers(0, top + 1, (10, 12, 3)).astype(np.uint16)
    alpha = generator.integers(0, top + 1, (10, 12, 1)).astype(np.uint16)
    kind = np.dtype(np.uint8 if bits == 8 else ">u2")
    for gray, layers, number in (
        (luma(colour), np.concatenate([colour, alpha], -1), 6),
        (colour[..., 0], np.concatenate([colour[..., :1], alpha], -1), 4),
    ):
        raw = png([row.astype(kind).tobytes() for row in layers], bits, number)
        assert off(decode(raw, depth=16).pixels, gray * (alpha[..., 0] / top)) <= (1 if bits == 8 else 2), number


def test_transparency_of_the_whole_image_says_nothing():
    layers = np.dstack([ramp()] * 3 + [np.zeros_like(ramp())])
    assert np.array_equal(decode(saved(layers)).pixels, ramp())


def test_deep_colour_png_keeps_its_depth():
    colour = np.random.default_rng(2).integers(0, 4096, (12, 20, 3)).astype(np.uint16)
    found = decode(deep_png(colour, 2), depth=16)
    assert found.bits == 12
    assert off(found.pixels, luma(colour)) <= 1


@pytest.mark.parametrize("bits", [10, 12, 13])
def test_png_declares_significant_bits(bits):
    values = ramp(bits) // 3  # the declaration counts, not the maximum
    stretched = np.rint(values * (65535 / ((1 << bits) - 1))).astype(np.uint16)
    for pixels in (stretched, values):  # as the specification says, and as some writers do
        found = decode(deep_png(pixels, 0, (b"sBIT", bytes([bits]))), depth=16)
        assert found.bits == bits
        assert off(found.pixels, values) <= 1
    colour = deep_png(np.dstack([stretched] * 3), 2, (b"sBIT", bytes([bits] * 3)))
    assert off(decode(colour, depth=16).pixels, values) <= 1


# -- JPEG --


def test_progressive_and_colour_jpeg():
    colour = np.dstack([ramp(), ramp()[::-1], ramp()[:, ::-1]])
    for options in ({"progressive": True}, {"subsampling": 0}, {"optimize": True}):
        assert off(decode(saved(ramp(), "jpeg", quality=100, **options)).pixels, ramp()) <= 2
        raw = saved(colour, "jpeg", quality=100, **options)
        theirs = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert off(decode(raw).pixels, luma(theirs)) <= 2


def ink(planes):
    """A JPEG of four planes as Pillow writes it: inverted, with Adobe's marker, transform 0."""
    raw = saved(Image.fromarray(np.dstack(planes), "CMYK"), "jpeg", quality=100, subsampling=0)
    at = raw.index(b"Adobe") - 4
    assert raw[at : at + 2] == b"\xff\xee"
    return raw, at


def test_cmyk_jpegs_of_all_conventions():
    light, none = ramp(), np.zeros_like(ramp())
    raw, _ = ink([255 - light, 255 - light, 255 - light, none])
    assert off(decode(raw).pixels, light) <= 3
    raw, at = ink([light, light, light, 255 - none])  # stored: 255 - light, black 0: ink as it is, without marker
    assert off(decode(raw[:at] + raw[at + 16 :]).pixels, light) <= 3
    grey = np.full_like(light, 127)  # stored 128: no chroma
    raw, at = ink([light, grey, grey, none])  # stored luma 255 - light
    ycck = raw[: at + 15] + b"\x02" + raw[at + 16 :]
    assert off(decode(ycck).pixels, light) <= 3


# -- TIFF --


TIFFS = {
    "8 bits": (np.uint8, {}),
    "8 bits, white is zero": (np.uint8, {"photometric": "miniswhite"}),
    "bilevel": (bool, {"photometric": "minisblack"}),
    "bilevel, white is zero": (bool, {"photometric": "miniswhite"}),
    "16 bits": (np.uint16, {}),
    "16 bits, white is zero": (np.uint16, {"photometric": "miniswhite"}),
    "signed 16 bits, white is zero": (np.int16, {"photometric": "miniswhite"}),
    "32 bits": (np.uint32, {}),
    "float": (np.float32, {}),
    "float, white is zero": (np.float32, {"photometric": "miniswhite"}),
    "double": (np.float64, {}),
    "tiles": (np.uint16, {"tile": (16, 16)}),
    "strips": (np.uint16, {"rowsperstrip": 3}),
    "deflate": (np.uint16, {"compression": "zlib"}),
    "deflate with predictor": (np.uint16, {"compression": "zlib", "predictor": True}),
    "deflated tiles of 8 bits": (np.uint8, {"compression": "zlib", "tile": (16, 16)}),
    "deflated float": (np.float32, {"compression": "zlib", "rowsperstrip": 7}),
    "BigTIFF": (np.uint16, {"bigtiff": True}),
    "BigTIFF of 8 bits": (np.uint8, {"bigtiff": True}),
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", TIFFS)
def test_tiff(name, order):
    kind, options = TIFFS[name]
    bits = {bool: 1, np.uint8: 8}.get(kind, 12)
    wanted = ramp(12).astype(float)
    values = ramp(12) > 2000 if kind is bool else ramp(bits).astype(kind)
    raw = tiff(values, byteorder=order, **options)
    if order == ">" and "bigtiff" in options:
        assert "BigTIFF" in reason(raw)
        return
    assert np.array_equal(tifffile.imread(io.BytesIO(raw)), values)
    wanted = values * 255.0 if kind is bool else values.astype(float)
    if options.get("photometric") == "miniswhite":
        wanted = (255 if bits <= 8 else 4095) - wanted
    found = decode(raw, depth=16)
    assert found.bits == max(bits, 8)
    assert np.array_equal(found.pixels, wanted)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "group4", "jpeg"])
def test_tiff_compressed_by_libtiff(compression):
    for bits in {"group4": [1], "jpeg": [8]}.get(compression, [8, 12]):
        pixels = Image.fromarray(ramp(12) > 2000) if bits == 1 else ramp(bits)
        raw = saved(pixels, "tiff", compression=compression, **({"quality": 100} if compression == "jpeg" else {}))
        wanted = (ramp(12) > 2000) * 255 if bits == 1 else ramp(bits)
        assert off(decode(raw, depth=16).pixels, wanted) <= (2 if compression == "jpeg" else 0), bits


def packed_tiff(values, bits, photometric=1, form=1):
    """One strip of values packed to `bits` (TIFF 6.0, FillOrder 1), little-endian."""
    height, width = values.shape
    line = (values[..., None] >> np.arange(bits)[::-1] & 1).reshape(height, -1).astype(np.uint8)
    data = np.packbits(line, axis=1).tobytes()
    data += b"\0" * (len(data) % 2)
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(data)), (339, form)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("photometric", [0, 1])
def test_tiff_of_packed_bits_declares_its_depth(bits, photometric):
    values = ramp(bits) // 2
    found = decode(packed_tiff(values.astype(int), bits, photometric), depth=16)
    assert found.bits == bits
    assert np.array_equal(found.pixels, (1 << bits) - 1 - values if photometric == 0 else values)


def test_tiff_of_deep_colour_and_alpha():
    colour = np.random.default_rng(3).integers(0, 4096, (12, 20, 3)).astype(np.uint16)
    found = decode(tiff(colour, photometric="rgb"), depth=16)
    assert found.bits == 12
    assert off(found.pixels, luma(colour)) <= 1
    layers = np.dstack([colour, np.full((12, 20), 65535, np.uint16)])
    assert np.array_equal(
        decode(tiff(layers, photometric="rgb", extrasamples=["unassalpha"]), depth=16).pixels, found.pixels
    )


def test_signed_values_are_lifted_by_half_of_their_depth():
    values = ramp(12).astype(np.int16) - 2048
    found = decode(tiff(values), depth=16)
    assert found.bits == 12
    assert np.array_equal(found.pixels, ramp(12))
    assert np.array_equal(decode(tiff(ramp(12).astype(np.int16)), depth=16).pixels, ramp(12))
    assert np.array_equal(decode(tiff((ramp().astype(int) - 128).astype(np.int8))).pixels, ramp())


def test_floats():
    share = np.linspace(0, 1, 2240, dtype=np.float32).reshape(40, 56)
    found = decode(tiff(share), depth=16)
    assert found.bits == 16
    assert off(found.pixels, share * 65535.0) <= 0.5
    for values in (share * 2, share - 0.5, np.where(share > 0.5, np.nan, share), np.where(share > 0.5, np.inf, 1)):
        assert "floating-point" in reason(tiff(values.astype(np.float32)))
    assert "16 bits" in reason(tiff((share * 70000).round()))


def pages(*all_pages):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for pixels, options in all_pages:
            writer.write(pixels, metadata=None, **options)
    return buffer.getvalue()


def test_every_page_comes_and_a_damaged_one_does_not_lose_the_others():
    packed = {"compression": "zlib"}
    for kind, top in ((np.uint8, 255), (np.uint16, 4095)):
        sheets = [(ramp(12) * (top / 4095) / n).astype(kind) for n in (1, 2, 3)]
        raw = bytearray(pages(*((s, packed) for s in sheets)))
        found = list(frames(bytes(raw), depth=16))
        assert [np.array_equal(f.pixels, s) for f, s in zip(found, sheets, strict=True)] == [True] * 3
        with tifffile.TiffFile(io.BytesIO(raw)) as file:
            at = file.pages[1].dataoffsets[0]
        raw[at : at + 40] = bytes(40)
        found = list(frames(bytes(raw), depth=16))
        assert isinstance(found[1], RadiographError)
        assert [np.array_equal(found[i].pixels, sheets[i]) for i in (0, 2)] == [True, True]


def test_pages_of_other_depths_and_orientations_and_small_copies():
    six = (0x0112, 3, 1, 6, True)
    raw = pages(
        (ramp(12), {}),
        (ramp(), {"extratags": [six]}),
        (ramp()[::4, ::4], {"subfiletype": 1}),
        (ramp(16), {"extratags": [six]}),
    )
    first, second, small, last = frames(raw, depth=16)
    assert np.array_equal(first.pixels, ramp(12))
    assert np.array_equal(second.pixels, np.rot90(ramp(), -1))
    assert "reduced copy" in str(small)
    assert np.array_equal(last.pixels, np.rot90(ramp(16), -1))


def test_pages_beyond_the_limit_and_in_circles_end(monkeypatch):
    from data_shards.decode import tiff as tiff_module

    monkeypatch.setattr(tiff_module, "MAX_FRAMES", 3)
    raw = pages(*[(ramp(), {})] * 5)
    found = list(frames(raw))
    assert len(found) == 4
    assert "first 3" in str(found[-1])
    monkeypatch.undo()
    raw = bytearray(packed_tiff(ramp(12).astype(int), 12))
    raw[-4:] = raw[4:8]  # the next directory is the first
    assert len(list(frames(bytes(raw)))) == 1


# -- other formats --


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_jpeg2000_declares_its_precision(bits):
    values = ramp(bits, (64, 80)) // 2
    raw = openjpeg.encode(values, bits_stored=bits, codec_format=0)
    boxed = openjpeg.encode(values, bits_stored=bits, codec_format=1)
    for file in (raw, boxed):
        assert looks_like_image(file[:4096], "x")
        found = decode(file, depth=16)
        assert found.bits == bits
        assert np.array_equal(found.pixels, values)
        assert found.facts == {"format": "jpeg2000"}


def test_bmp_webp_gif():
    for kind, options in (("bmp", {}), ("webp", {"lossless": True}), ("gif", {})):
        raw = saved(ramp(), kind, **options)
        assert looks_like_image(raw[:64], "x")
        found = decode(raw)
        assert off(found.pixels, ramp()) <= 1, kind
        assert found.facts == {"format": kind}


@pytest.mark.parametrize("most", [100, 255, 1000, 4095, 65535])
def test_pgm_declares_its_brightest(most):
    values = ramp(16).astype(int) // 2 % (most + 1)
    kind = ">u2" if most > 255 else "u1"
    raw = b"P5\n# by hand\n56 40\n%d\n" % most + values.astype(kind).tobytes()
    assert looks_like_image(raw[:64], "x")
    found = decode(raw, depth=16)
    bits = max(8, most.bit_length())
    assert found.bits == bits
    scale = 1 if most > 255 else 255 / most
    assert off(found.pixels, values * scale) <= 0.5 + 1e-9


def test_every_image_of_an_animation_comes():
    sheets = [Image.fromarray(ramp() // n) for n in (1, 2, 4)]
    for kind, options in (("gif", {}), ("png", {}), ("webp", {"lossless": True})):
        found = list(frames(saved(sheets[0], kind, save_all=True, append_images=sheets[1:], **options)))
        assert len(found) == 3, kind
        assert all(off(f.pixels, np.asarray(s)) <= 1 for f, s in zip(found, sheets, strict=True)), kind


def test_previews_in_a_jpeg_are_no_radiographs():
    raw = saved(Image.fromarray(ramp()), "mpo", save_all=True, append_images=[Image.fromarray(ramp()[::4, ::4])])
    (found,) = frames(raw)
    assert found.pixels.shape == ramp().shape


# -- orientation and aspect --


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    tag = [(0x0112, 3, 1, orientation, True)]
    shallow, deep = turned(ramp())[orientation], turned(ramp(12))[orientation]
    assert np.array_equal(decode(saved(ramp(), exif=exif)).pixels, shallow)
    assert np.array_equal(decode(saved(ramp(12), exif=exif), depth=16).pixels, deep)
    assert np.array_equal(decode(tiff(ramp(), extratags=tag)).pixels, shallow)
    assert np.array_equal(decode(tiff(ramp(12), extratags=tag), depth=16).pixels, deep)
    colour = np.dstack([ramp(12)] * 3)
    assert np.array_equal(decode(tiff(colour, photometric="rgb", extratags=tag), depth=16).pixels, deep)
    assert np.array_equal(decode(tiff(ramp(12).astype(np.float32), extratags=tag), depth=16).pixels, deep)
    assert off(decode(saved(ramp(), "jpeg", quality=100, exif=exif)).pixels, shallow) <= 2
    assert np.array_equal(decode(saved(ramp(), "webp", lossless=True, exif=exif)).pixels, shallow)


def test_orientation_of_deep_colour_png():
    exif = Image.Exif()
    exif[0x0112] = 6
    colour = deep_png(np.dstack([ramp(12)] * 3), 2, (b"eXIf", exif.tobytes()[6:]))
    assert np.array_equal(decode(colour, depth=16).pixels, np.rot90(ramp(12), -1))


@pytest.mark.parametrize(("dpi", "aspect"), [((300, 300), 1), ((300, 600), 2), ((600, 300), 0.5), ((1, 600), 1)])
def test_pixel_aspect_is_width_over_height(dpi, aspect):
    for kind in ("png", "jpeg", "tiff", "bmp"):
        assert decode(saved(ramp(), kind, dpi=dpi)).pixel_aspect == pytest.approx(aspect, rel=0.01), kind
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(saved(ramp(), dpi=dpi, exif=exif)).pixel_aspect == pytest.approx(1 / aspect, rel=0.01)
    raw = tiff(ramp(12), resolution=dpi, extratags=[(0x0112, 3, 1, 6, True)])
    assert decode(raw).pixel_aspect == pytest.approx(1 / aspect, rel=0.01)


# -- what is refused, and damage --


def test_recognition_is_by_content():
    for raw in (saved(ramp()), saved(ramp(), "jpeg"), tiff(ramp()), tiff(ramp(), bigtiff=True), saved(ramp(), "bmp")):
        assert looks_like_image(raw[:64], "no suffix")
    for text in (b"BM,25\n", b"P1 left\n", b"P5,1,2,3\n", b"image,x0,y0\n", b"", b"GIF"):
        assert not looks_like_image(text, "a.csv")
    assert looks_like_image(b"", "A.PNG")


def test_reasons():
    assert "empty" in reason(b"")
    assert "LFS" in reason(b"version https://git-lfs.github.com/spec/v1\n")
    assert "not an image" in reason(b"hello" * 100)
    assert "damaged" in reason(saved(ramp())[:-200])
    assert "damaged" in reason(tiff(ramp())[:100])


@pytest.mark.parametrize("make", [saved, tiff, lambda p: saved(p, "jpeg"), lambda p: saved(p, "bmp")])
def test_the_limit_of_pixels_holds_before_decoding(make, monkeypatch):
    raw = make(ramp())
    monkeypatch.setattr(depth, "MAX_PIXELS", 40 * 56 - 1)
    assert "bomb" in reason(raw)
    monkeypatch.setattr(depth, "MAX_PIXELS", 40 * 56)
    decode(raw)


def test_a_header_of_giant_size_is_refused_at_once():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    raw = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        + struct.pack(">I", 100)
        + b"IDAT"
        + bytes(104)
    )
    assert "bomb" in reason(raw)
    giant = bytearray(packed_tiff(ramp(12).astype(int), 12))
    at = giant.rindex(struct.pack("<HHII", 256, 4, 1, 56))
    giant[at + 8 : at + 12] = struct.pack("<I", 3_000_000)
    giant[at + 20 : at + 24] = struct.pack("<I", 3_000_000)
    assert "bomb" in reason(bytes(giant))


SAMPLES = [
    *(saved(ramp(12)), saved(np.dstack([ramp()] * 4)), saved(ramp(), "gif"), saved(ramp(), "jpeg", progressive=True)),
    *(deep_png(np.dstack([ramp(12)] * 3), 2), saved(ramp(), "bmp"), saved(ramp(), "webp")),
    *(tiff(ramp(12)), tiff(ramp(), compression="zlib"), tiff(ramp(12), compression="zlib", tile=(16, 16))),
    *(tiff(ramp(12).astype(np.float32)), saved(ramp(12), "tiff", compression="tiff_lzw"), pages(*[(ramp(12), {})] * 3)),
    *(openjpeg.encode(ramp(12, (64, 80)), codec_format=1), b"P5 56 40 4095 " + ramp(12).astype(">u2").tobytes()),
]


def survive(data):
    raw = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=8)):
        raw[at] = value
    cut = data.draw(st.integers(1, len(raw))) if data.draw(st.booleans()) else len(raw)
    try:
        found = list(frames(bytes(raw[:cut]), depth=16))
    except RadiographError:
        return
    for frame in found:
        assert isinstance(frame, RadiographError) or (frame.pixels.ndim == 2 and frame.pixels.max() < 1 << frame.bits)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_gives_reasons_or_images(data):
    survive(data)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(data=st.data())
def test_damage_gives_reasons_or_images_over_and_over(data):
    survive(data)


def test_cut_files_are_told_and_nothing_is_printed(capfd):
    for raw in SAMPLES:
        for end in range(1, len(raw) * 3 // 4, max(1, len(raw) // 25)):
            try:
                found = list(frames(raw[:end]))
            except RadiographError:
                continue
            assert any(isinstance(f, RadiographError) for f in found), (raw[:4], end)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_formats_are_the_ones_that_hold_radiographs():
    image = Image.fromarray(ramp()).convert("RGB")
    for kind in ("ico", "pcx", "tga", "eps"):
        assert "not an image" in reason(saved(image, kind)), kind
    assert set(raster.FORMATS) == {"PNG", "JPEG", "BMP", "WEBP", "JPEG2000", "GIF", "PPM"}


def test_sixteen_declared_bits_tell_of_the_container_only():
    """12-bit values that a writer put into 16: JPEG 2000 and PGM by OpenCV, PNG with sBIT 16."""
    values = (np.arange(64 * 64, dtype=np.uint16) % 4096).reshape(64, 64)
    values[0, 0] = 4095
    jp2 = cv2.imencode(".jp2", values, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])[1].tobytes()
    pgm = b"P5 64 64 65535\n" + values.astype(">u2").tobytes()
    for raw in (jp2, pgm, deep_png(values, 0, (b"sBIT", bytes([16])))):
        found = decode(raw, depth=16)
        assert found.bits == 12
        assert np.abs(found.pixels.astype(int) - values).max() <= 2


def test_planes_that_lie_apart_are_refused_where_they_would_be_garbage():
    planes = np.stack([ramp(16)] * 3)
    assert "not read" in reason(tiff(planes, photometric="rgb", planarconfig="separate"))
    shallow = tiff(np.stack([ramp()] * 3), photometric="rgb", planarconfig="separate")
    assert np.array_equal(decode(shallow).pixels, ramp())


def test_compressions_that_depend_on_the_build_are_named():
    plain, zstd = (struct.pack("<HHII", 259, 3, 1, code) for code in (1, 50000))
    raw = tiff(ramp(), byteorder="<")
    assert plain in raw
    assert "compression" in reason(raw.replace(plain, zstd))


def test_a_file_of_many_images_has_a_limit_by_its_size(monkeypatch):
    monkeypatch.setattr(radiograph, "MAX_PIXELS", 3_000_000)
    blank = [np.zeros((1000, 1000), np.uint8)] * 40
    buffer = io.BytesIO()
    Image.fromarray(blank[0]).save(
        buffer, "tiff", save_all=True, append_images=[Image.fromarray(b) for b in blank[1:]], compression="tiff_deflate"
    )
    raw = buffer.getvalue()
    found = list(frames(raw))
    assert len(found) == 1 + max(3, 200 * len(raw) // 1_000_000)
    assert "decompression bomb" in str(found[-1])
    assert not any(isinstance(frame, RadiographError) for frame in found[:-1])


def test_transparency_of_deep_gray_lies_over_black_and_deep_ppm_is_named():
    values = ramp(16)
    clear = int(values[3, 3])
    raw = deep_png(values, 0, (b"tRNS", clear.to_bytes(2, "big")))
    assert np.array_equal(decode(raw, depth=16).pixels, np.where(values == clear, 0, values))
    colour = np.dstack([values] * 3).astype(">u2").tobytes()
    for most in (256, 4095, 65535):
        assert "PPM" in reason(b"P6 %d %d %d\n" % (*values.shape[::-1], most) + colour)


def test_thousands_of_scans_are_a_bomb():
    """A progressive JPEG whose last scan is repeated: each takes its time, and few bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(
        buffer, "jpeg", progressive=True
    )
    raw = buffer.getvalue()
    assert decode(raw).pixels.shape == (64, 64)
    last = raw[raw.rindex(b"\xff\xda") : -2]
    with pytest.raises(RadiographError, match="thousands of JPEG scans"):
        decode(raw[:-2] + last * 2000 + raw[-2:])
