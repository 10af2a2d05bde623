"""One image file as 8-bit pixels, in one way for every data set.

Levels deeper than 8 bits are scaled by their format's own maximum, 65,535 to 255, and refused where the format names
none (32-bit integers, floating point). Grey levels of fewer bits are spread over 0 to 255, palettes become the colours
that they name, transparent pixels lie on white paper, and an image is turned as its orientation tag says.
"""

import struct
import zlib
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from fedmef_dist.data.files import damaged, open_regular

Picture: TypeAlias = Any  # PIL's image; importing it here would cost every command a tenth of a second

# By suffix and by content: a file of another kind is foreign, whatever its name says.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".tif", ".tiff")
REPLACE = "put a whole image of the right kind there, or take it away"
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
_MOST_BYTES = 1 << 30
_CONVERT = "save it with 8 or 16 bits a channel"
_DEEP = ("I", "F")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


def read_image(path: Path, channels: int) -> tuple[Picture, str]:
    """The image, mode L for one channel and RGB for three, and what the file was, as ``PNG, mode L, 28x28``.

    Raises:
        UserError: the file is empty, truncated, not an image, or has levels without a maximum.
    """
    with open_regular(path, _MOST_BYTES) as file:
        return decode(file, path, channels)


def decode(file: IO[bytes], path: Path, channels: int) -> tuple[Picture, str]:
    """The same of an open file, named ``path`` in messages."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file, formats=_FORMATS) as opened:
            kind = f"{opened.format}, mode {opened.mode}, {opened.width}x{opened.height}"
            image = ImageOps.exif_transpose(_shallow(opened, path))
            return _on_paper(image).convert("L" if channels == 1 else "RGB"), kind
    except UnidentifiedImageError as error:
        raise damaged(path, "a whole image", f"none of {', '.join(_FORMATS)}", REPLACE) from error
    except (
        *(OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, OverflowError),
        *(struct.error, zlib.error, Image.DecompressionBombError),
    ) as error:
        raise damaged(path, "a whole image", str(error) or "none", REPLACE) from error


def _shallow(image: Picture, path: Path) -> Picture:
    """Grey levels of more than 8 bits in 8 bits; other images as they are (Pillow takes the high byte of colours)."""
    from PIL import Image

    if not image.mode.startswith(_DEEP):
        return image
    highest = _highest_level(image)
    if highest is None:
        raise damaged(
            path, "levels of at most 16 bits", f"mode {image.mode}, whose range the file does not name", _CONVERT
        )
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > highest:
        raise damaged(path, f"levels of 0 to {highest}", f"{levels.min()} to {levels.max()}", _CONVERT)
    if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = highest - levels
    scaled = (levels * 255 + highest // 2) // highest
    scaled[levels == image.info.get("transparency", -1)] = 255  # white paper
    shallow = Image.fromarray(scaled.astype(np.uint8))
    shallow.getexif().update(image.getexif())
    return shallow


def _highest_level(image: Picture) -> int | None:
    """The largest level that the format allows; None where there is none."""
    if image.mode == "F":
        return None
    if image.format == "TIFF":
        tags = image.tag_v2
        bits, kind = tags.get(_BITS, (1,))[0], tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0]
        return 2**bits - 1 if bits <= 16 and kind == _UNSIGNED else None
    # PNG has 16 bits; Pillow scales PGM from the maximum in its head to 16 bits.
    return 65535 if image.format in ("PNG", "PPM") else None


def _on_paper(image: Picture) -> Picture:
    """The image on white where it is transparent."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(paper, image)


def is_grey(pixels: np.ndarray) -> bool:
    """Whether red, green and blue, the last axis, are the same everywhere."""
    return bool((pixels[..., :1] == pixels[..., 1:]).all())
