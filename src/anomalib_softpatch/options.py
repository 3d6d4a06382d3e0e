# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Checks of commands' options, without the seconds that importing torch takes."""

SMALLEST_SIZE = 32  # pixels of an image's side: the least that backbones of five stages make a grid of


def check_whole_number(name: str, value: int, smallest: int) -> None:
    """Refuse a number that is too small.

    Args:
        name: Name of the option.
        value: Its value.
        smallest: Smallest value that is allowed.

    Raises:
        ValueError: If it is smaller.
    """
    if value < smallest:
        msg = f"{name}={value} must be a whole number of {smallest} or more."
        raise ValueError(msg)


def check_share(name: str, value: float, zero: bool = True) -> None:
    """Refuse a number that is no share.

    Args:
        name: Name of the option.
        value: Its value.
        zero: Whether it may be 0.

    Raises:
        ValueError: If it is below 0, or 1 or more, or not a number.
    """
    if not (0 <= value < 1 if zero else 0 < value < 1):
        range_text = "of at least 0" if zero else "above 0"
        msg = f"{name}={value} must be a share {range_text} and below 1, for example {0.1 if zero else 0.05}."
        raise ValueError(msg)
