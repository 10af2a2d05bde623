"""Every depth, orientation, palette and transparency that an image file may have."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.pixels import decode, read_image

HERE = Path("image")
LEVELS = np.array([[0, 257, 65535], [32768, 1000, 40000]], dtype=np.uint16)
SCALED = [[0, 1, 255], [128, 4, 156]]  # of 65,535 parts, 255


def encoded(image, form, **keys):
    content = io.BytesIO()
    image.save(content, form, **keys)
    content.seek(0)
    return content


def grey(content, channels=1):
    image, _ = decode(content, HERE, channels)
    return np.asarray(image).tolist()


def tiff(values, bits, photometric=1, sample_format=1, order="<"):
    """A grey TIFF file of one strip, written by hand."""
    data = values.tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    tags[339] = sample_format
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HI", 42, 8 + len(data))
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return io.BytesIO(head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))


def test_16_bit_png_is_scaled_by_its_own_maximum():
    assert grey(encoded(Image.fromarray(LEVELS), "PNG")) == SCALED


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_in_both_byte_orders(order):
    content = tiff(LEVELS.astype(f"{order}u2"), 16, order=order)
    assert grey(content) == SCALED


def test_tiff_whose_zero_is_white_is_turned_round():
    content = tiff(LEVELS.astype("<u2"), 16, photometric=0)
    assert grey(content) == [[255, 254, 0], [127, 251, 99]]


@pytest.mark.parametrize(("highest", "level", "expected"), [(65535, 32768, 128), (4095, 4095, 255), (1023, 512, 128)])
def test_deep_pgm_is_scaled_by_the_maximum_in_its_head(highest, level, expected):
    content = io.BytesIO(b"P5 2 1 %d\n" % highest + struct.pack(">HH", level, 0))
    assert grey(content) == [[expected, 0]]


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        (tiff(np.array([[1, 2]], "<i4"), 32, sample_format=2), "mode I"),
        (tiff(np.array([[0.5, 0.25]], "<f4"), 32, sample_format=3), "mode F"),
        (tiff(np.array([[-1, 2]], "<i2"), 16, sample_format=2), "mode I"),
        (io.BytesIO(b"Pf\n1 1\n-1.0\n" + struct.pack("<f", 0.5)), "mode F"),
    ],
)
def test_levels_without_a_maximum_are_refused_by_name(content, mode):
    with pytest.raises(UserError, match=f"levels of at most 16 bits, found {mode}") as caught:
        grey(content)
    assert caught.value.where == "image"


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_gives_the_same_grey_levels(mode):
    levels = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    form = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    content = encoded(Image.fromarray(np.kron(levels, np.ones((8, 8), np.uint8))).convert(mode), form, quality=100)
    found = np.asarray(decode(content, HERE, 1)[0])[::8, ::8]
    assert np.abs(found.astype(int) - levels).max() <= 2


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_are_spread_over_0_to_255(bits):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, bits, 0, 0, 0, 0)
    row = b"\0" + bytes([(2**bits - 1) << (8 - bits)])
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert grey(io.BytesIO(png)) == [[255]]


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_transparent_pixels_lie_on_white_paper(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    content = encoded(image.convert(mode) if mode != "P" else image.quantize(4), "PNG")
    assert grey(content) == [[255, 0]]


def test_a_transparent_level_of_a_deep_png_is_white():
    assert grey(encoded(Image.fromarray(LEVELS), "PNG", transparency=1000)) == [[0, 1, 255], [128, 255, 156]]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_an_image_is_turned_as_its_tag_says(form):
    image = Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 16, 1).repeat(8, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    content = encoded(image, form, exif=exif)
    turned, kind = decode(content, HERE, 1)
    pixels = np.asarray(turned)
    assert pixels.shape == (16, 16)
    assert pixels[:, :8].min() > 250
    assert pixels[:, 8:].max() < 5
    assert kind == f"{form}, mode L, 16x16"


def test_a_deep_image_is_turned_too():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = 6
    content = encoded(Image.fromarray(np.array([[0], [65535]], np.uint16)), "TIFF", tiffinfo=tags)
    assert grey(content) == [[255, 0]]


def test_a_pipe_and_a_missing_file_are_named(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match="a regular file"):
        read_image(tmp_path / "a.png", 3)
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="a link leads nowhere") as caught:
        read_image(tmp_path / "b.png", 3)
    assert "nowhere.png" in caught.value.where
