# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Reading image files as they are found in practice: turned, of many bits, odd or broken. No torch is imported.

All commands read an image by :func:`read_image`: as its EXIF orientation says, and with values in [0, 1]. Files of 16
bits do not tell how many bits their camera has, and an image cannot be scaled by its own largest value, which a defect
changes. So one number stands for white in all of a set and of what its model will see: :func:`find_largest_value`.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

SMALLEST_SIDE = 8
BITS = (8, 10, 12, 14, 16)  # per value, of cameras
EIGHT_BITS = 255  # largest value
REMEDY = "convert it, or use the commands of anomalib-softpatch"


class UnreadableImageError(ValueError):
    """An image file cannot be read; the message is the reason."""


def read_image(path: str | Path, largest_value: int = EIGHT_BITS) -> tuple[np.ndarray, str]:
    """Read an image, and say what is odd about it.

    Args:
        path: Image file.
        largest_value: Value that becomes 1, of whole numbers of more than 8 bits.

    Returns:
        Shape ``(3, height, width)``, float32 in [0, 1], as it is displayed; and a remark, which is empty for ordinary
        images.

    Raises:
        UnreadableImageError: If it cannot be read.
    """
    remark = ""
    with _opened(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            remark = f"has {frames} frames, the first was looked at"
        values = _values(_displayed(image), largest_value)
        height, width = values.shape[:2]
        if min(height, width) < SMALLEST_SIDE:
            msg = f"too small: {width} x {height} pixels"
            raise UnreadableImageError(msg)
    return np.ascontiguousarray(np.broadcast_to(values, (height, width, 3)).transpose(2, 0, 1)), remark


def read_reduced(path: str | Path, side: int, largest_value: int = EIGHT_BITS) -> tuple[Image.Image, tuple[int, int]]:
    """Read an image fitted into a square of a side in pixels, to be shown; ``largest_value`` as in :func:`read_image`.

    Returns:
        The small image, and width and height of the whole one, both as it is displayed.

    Raises:
        UnreadableImageError: If it cannot be read.
    """
    with _opened(path) as image:
        full_width, full_height = displayed_size(image)
        scale = min(side / full_width, side / full_height)
        size = max(1, round(full_width * scale)), max(1, round(full_height * scale))
        small = _shown(image, (2 * side, 2 * side), largest_value)
        return small.resize(size, reducing_gap=3.0), (full_width, full_height)


def read_part(
    path: str | Path, part: tuple[float, float, float, float], side: int, largest_value: int = EIGHT_BITS
) -> Image.Image:
    """Read a part of an image, to be shown as a square of a side in pixels.

    Args:
        path: Image file.
        part: Left, top, right and bottom of the part in pixels of the image as it is displayed; what lies beyond the
            image is black.
        side: Width and height that the part is resized to, in pixels.
        largest_value: See :func:`read_image`.

    Raises:
        UnreadableImageError: If it cannot be read.
    """
    with _opened(path) as image:
        width, height = displayed_size(image)
        scale = min(1.0, side / min(part[2] - part[0], part[3] - part[1]))
        whole = _shown(image, (round(scale * image.width), round(scale * image.height)), largest_value)
        scales = (whole.width / width, whole.height / height) * 2
        left, top, right, bottom = (round(edge * scale) for edge, scale in zip(part, scales, strict=True))
        box = (left, top, max(left + 1, right), max(top + 1, bottom))
        return whole.crop(box).resize((side, side), reducing_gap=3.0)


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an opened image as it is displayed, in pixels; it is not decoded."""
    width, height = image.size
    return (height, width) if orientation(image) in (5, 6, 7, 8) else (width, height)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return width and height of an image file as it is displayed, in pixels; the image is not decoded.

    Raises:
        OSError: If it cannot be read, or is not an image.
    """
    with header(path) as image:
        return displayed_size(image)


@contextmanager
def header(path: str | Path) -> Iterator[Image.Image]:
    """Open an image of which nothing is to be decoded, however large it is.

    Raises:
        OSError: If it cannot be read, or is not an image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path)
    with image:
        yield image


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation by which an opened image is still to be turned, 1 for none; it is not decoded."""
    if image.format == "TIFF":  # Pillow turns it
        return 1
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif"}:
        return 1  # Pillow would decode the image to look for it behind the pixels, where no browser does
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def is_deep(image: Image.Image) -> bool:
    """Tell whether an opened image has more than 8 bits per value: one channel of 16 or 32 bits. It is not decoded.

    Pillow reduces images of several channels of 16 bits to 8 by dropping the lower ones.
    """
    return image.mode.startswith(("I", "F"))


def find_largest_value(paths: Sequence[Path]) -> tuple[int, int]:
    """Find the number that stands for white in the whole-number images of a set.

    Returns:
        The largest number of 8, 10, 12, 14 or 16 bits, of the fewest that all images of more than 8 bits need; and how
        many such images there are. 255 and 0 if there are none. Images of values that need more bits do not count.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # decoders let other threads run
        values = pool.map(_largest_value_of, paths)
        found = [value for value in values if value is not None and 0 <= value < 2 ** BITS[-1]]
    return next(2**bits - 1 for bits in BITS if max(found, default=0) < 2**bits), len(found)


def _largest_value_of(path: str | Path) -> int | None:
    """Return the largest value of an image of whole numbers of more than 8 bits; ``None`` for any other file."""
    try:
        with _opened(path) as image:
            return int(np.asarray(image).max()) if is_deep(image) and image.mode != "F" else None
    except UnreadableImageError:
        return None


def reason_against(path: str | Path) -> str:
    """Say why an image file cannot be decoded, with no more work than it takes to know; empty if it can be."""
    try:
        with _opened(path) as image:
            if not _has_right_checksums(path):
                image.draft("L", (1, 1))  # JPEG files are decoded at an eighth of their size, other files whole
                image.load()
    except UnreadableImageError as error:
        return str(error)
    return ""


def reason_against_anomalib(path: str | Path, largest_value: int = EIGHT_BITS) -> str:
    """Say why Anomalib would read a readable image otherwise than :func:`read_image`; empty if both read the same."""
    with _opened(path) as image:
        if orientation(image) != 1:
            return f"is turned by its EXIF orientation, which Anomalib does not see: {REMEDY}"
        if not is_deep(image):
            return ""
        mode = image.mode
        largest = np.asarray(image).max()
    if mode != "F" and largest <= EIGHT_BITS == largest_value:
        return ""
    return f"has values up to {largest:g} (mode {mode}), and Anomalib cuts values at 255: {REMEDY}"


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image; whatever a decoder raises becomes a ``ValueError`` whose message is the reason."""
    reason = _reason_against_file(Path(path))
    if reason:
        raise UnreadableImageError(reason)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks of decoders about what they could read nevertheless
            with Image.open(path) as image:
                yield image
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        msg = "not an image, or of an unknown format"
        raise UnreadableImageError(msg) from error
    except Exception as error:  # decoders raise whatever they like for broken files
        msg = f"cannot be read: {error}"
        raise UnreadableImageError(msg) from error


def _reason_against_file(path: Path) -> str:
    """Say why a file need not be opened; empty if it should be."""
    try:
        if not path.is_file():
            return "not a file, or a link that leads nowhere"
        return "" if path.stat().st_size else "empty file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _has_right_checksums(path: str | Path) -> bool:
    """Tell whether a file is a whole PNG file by its checksums, which are read much faster than its pixels."""
    with Image.open(path) as image:
        if image.format != "PNG":
            return False
        try:
            image.verify()
        except Exception:  # Pillow reads pixels under a wrong checksum, too: decoding tells if they are broken
            return False
    return True


def _displayed(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF orientation says."""
    return image if orientation(image) == 1 else ImageOps.exif_transpose(image)


def _shown(image: Image.Image, size: tuple[int, int], largest_value: int) -> Image.Image:
    """Return an image as it is displayed, of 8 bits, at no less than a size."""
    if is_deep(image):
        values = _values(_displayed(image), largest_value)
        return Image.fromarray((255 * values[..., 0]).round().astype(np.uint8)).convert("RGB")
    image.draft("RGB", size)  # JPEG files are decoded at a fraction of their size
    return _displayed(image).convert("RGB")


def _values(image: Image.Image, largest_value: int) -> np.ndarray:
    """Return the values of an image in [0, 1], shape ``(height, width, 3)``, or 1 in place of 3 for a deep one."""
    if not is_deep(image):
        # As torchvision scales for Anomalib, to the last bit
        return np.asarray(image.convert("RGB"), dtype=np.float32) * np.float32(1 / EIGHT_BITS)
    values = np.asarray(image)[..., None]
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # not a number is neither
            msg = f"has values from {low:g} to {high:g}; floating-point images are read where they are in [0, 1]"
            raise UnreadableImageError(msg)
        return values.astype(np.float32)
    if low < 0 or high > largest_value:
        msg = (
            f"has values from {low} to {high}; whole numbers are read from 0 to {largest_value}, "
            f"{largest_value.bit_length()} bits as in the training images"
        )
        raise UnreadableImageError(msg)
    return values.astype(np.float32) * np.float32(1 / largest_value)
