# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Reading image files as they occur in practice: rotated, with many bits, unusual, or broken. Torch is not imported.

All commands read images with :func:`read_image`: in their EXIF orientation, and with values in [0, 1]. Files of 16 bits
do not tell how many bits the camera has, and an image cannot be scaled by its own largest value, which a defect
changes. So one value is white in a whole set and in all images that its model will see: :func:`find_largest_value`.
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
BITS = (8, 10, 12, 14, 16)  # bits per value of cameras
EIGHT_BITS = 255  # largest value of 8 bits
REMEDY = "convert it, or use the commands of anomalib-softpatch"


class UnreadableImageError(ValueError):
    """An image file cannot be read; the message gives the reason."""


def read_image(path: str | Path, largest_value: int = EIGHT_BITS) -> tuple[np.ndarray, str]:
    """Read an image as it is displayed, and report what is unusual about it.

    Args:
        path: Image file.
        largest_value: Value that becomes 1 in an image of whole numbers of more than 8 bits.

    Returns:
        Shape ``(3, height, width)``, float32 in [0, 1]; and a remark, which is empty for ordinary images.

    Raises:
        UnreadableImageError: If it cannot be read.
    """
    remark = ""
    with _opened(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            remark = f"has {frames} frames, of which only the first was read"
        values = _values(_displayed(image), largest_value)
        height, width = values.shape[:2]
        if min(height, width) < SMALLEST_SIDE:
            msg = f"too small: {width} x {height} pixels"
            raise UnreadableImageError(msg)
    return np.ascontiguousarray(np.broadcast_to(values, (height, width, 3)).transpose(2, 0, 1)), remark


def read_reduced(path: str | Path, side: int, largest_value: int = EIGHT_BITS) -> tuple[Image.Image, tuple[int, int]]:
    """Read an image for display, fitted into a square of a side in pixels; ``largest_value`` as in :func:`read_image`.

    Returns:
        The small image, and width and height of the full image as it is displayed, in pixels.

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
    """Read a part of an image for display.

    Args:
        path: Image file.
        part: Left, top, right and bottom of the part in pixels of the image as it is displayed; black beyond the image.
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
    """Return width and height of an opened image as it is displayed, in pixels, without decoding it."""
    width, height = image.size
    return (height, width) if orientation(image) in (5, 6, 7, 8) else (width, height)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return width and height of an image file as it is displayed, in pixels, without decoding it.

    Raises:
        OSError: If it cannot be read, or is not an image.
    """
    with header(path) as image:
        return displayed_size(image)


@contextmanager
def header(path: str | Path) -> Iterator[Image.Image]:
    """Open an image that will not be decoded, without Pillow's warning about large images.

    Raises:
        OSError: If it cannot be read, or is not an image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(path)
    with image:
        yield image


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that has yet to be applied to an opened image, 1 for none, without decoding it."""
    if image.format == "TIFF":  # Pillow applies it
        return 1
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif"}:
        return 1  # Pillow would decode the image to look for EXIF data after the pixels, and browsers do not look there
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def is_deep(image: Image.Image) -> bool:
    """Tell, without decoding it, whether an opened image has one channel of 16 or 32 bits.

    Pillow drops the lower bits of images with several channels of 16 bits.
    """
    return image.mode.startswith(("I", "F"))


def find_largest_value(paths: Sequence[Path]) -> tuple[int, int]:
    """Find the value of white in the deep images of a set, those of whole numbers of more than 8 bits.

    Returns:
        The largest value of 8, 10, 12, 14 or 16 bits, whichever is the smallest that fits all deep images; and the
        number of deep images. 255 and 0 if there are none. Images that need more bits do not count.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # decoders release the GIL
        values = pool.map(_largest_value_of, paths)
        found = [value for value in values if value is not None and 0 <= value < 2 ** BITS[-1]]
    return next(2**bits - 1 for bits in BITS if max(found, default=0) < 2**bits), len(found)


def _largest_value_of(path: str | Path) -> int | None:
    """Return the largest value of a deep image of whole numbers; ``None`` for any other file."""
    try:
        with _opened(path) as image:
            return int(np.asarray(image).max()) if is_deep(image) and image.mode != "F" else None
    except UnreadableImageError:
        return None


def reason_against(path: str | Path) -> str:
    """Return why an image file cannot be decoded, with as little work as possible; empty if it can be."""
    try:
        with _opened(path) as image:
            if not _has_right_checksums(path):
                image.draft("L", (1, 1))  # decodes JPEG files at an eighth of their size, other files completely
                image.load()
    except UnreadableImageError as error:
        return str(error)
    return ""


def reason_against_anomalib(path: str | Path, largest_value: int = EIGHT_BITS) -> str:
    """Return why Anomalib reads a readable image differently from :func:`read_image`; empty if both read the same."""
    with _opened(path) as image:
        if orientation(image) != 1:
            return f"is rotated or mirrored by its EXIF orientation, which Anomalib ignores: {REMEDY}"
        if not is_deep(image):
            return ""
        mode = image.mode
        largest = np.asarray(image).max()
    if mode != "F" and largest <= EIGHT_BITS == largest_value:
        return ""
    return f"has values up to {largest:g} (mode {mode}), and Anomalib clips values at 255: {REMEDY}"


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image; any error of a decoder becomes an ``UnreadableImageError`` with the reason."""
    reason = _reason_against_file(Path(path))
    if reason:
        raise UnreadableImageError(reason)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from decoders about files that they can read nevertheless
            with Image.open(path) as image:
                yield image
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        msg = "not an image, or in an unknown format"
        raise UnreadableImageError(msg) from error
    except Exception as error:  # decoders may raise any exception for broken files
        msg = f"cannot be read: {error}"
        raise UnreadableImageError(msg) from error


def _reason_against_file(path: Path) -> str:
    """Return why a file need not be opened; empty if it should be."""
    try:
        if not path.is_file():
            return "not a file, or a broken link"
        return "" if path.stat().st_size else "empty file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _has_right_checksums(path: str | Path) -> bool:
    """Tell by its checksums, which are read much faster than pixels, whether a file is a complete PNG file."""
    with Image.open(path) as image:
        if image.format != "PNG":
            return False
        try:
            image.verify()
        except Exception:  # pixels may be readable despite a wrong checksum: they have to be decoded
            return False
    return True


def _displayed(image: Image.Image) -> Image.Image:
    """Return an image in its EXIF orientation."""
    return image if orientation(image) == 1 else ImageOps.exif_transpose(image)


def _shown(image: Image.Image, size: tuple[int, int], largest_value: int) -> Image.Image:
    """Return an image as it is displayed, with 8 bits, at a size or larger."""
    if is_deep(image):
        values = _values(_displayed(image), largest_value)
        return Image.fromarray((255 * values[..., 0]).round().astype(np.uint8)).convert("RGB")
    image.draft("RGB", size)  # JPEG files are decoded at a fraction of their size
    return _displayed(image).convert("RGB")


def _values(image: Image.Image, largest_value: int) -> np.ndarray:
    """Return the values of an image in [0, 1], shape ``(height, width, 3)``, or ``(height, width, 1)`` if deep."""
    if not is_deep(image):
        # Bit-identical to torchvision's scaling, which Anomalib uses
        return np.asarray(image.convert("RGB"), dtype=np.float32) * np.float32(1 / EIGHT_BITS)
    values = np.asarray(image)[..., None]
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # also true for NaN
            msg = f"has values from {low:g} to {high:g}; floating-point values must be in [0, 1]"
            raise UnreadableImageError(msg)
        return values.astype(np.float32)
    if low < 0 or high > largest_value:
        msg = (
            f"has values from {low} to {high}; whole numbers must be from 0 to {largest_value}, "
            f"{largest_value.bit_length()} bits as in the training images"
        )
        raise UnreadableImageError(msg)
    return values.astype(np.float32) * np.float32(1 / largest_value)
