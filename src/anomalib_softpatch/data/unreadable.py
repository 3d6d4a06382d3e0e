# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Search for image files that cannot be read, or that Anomalib misreads, before a run meets the first of them."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from anomalib.data import AnomalibDataModule, AnomalibDataset, PredictDataset

from anomalib_softpatch.images.reading import EIGHT_BITS, UnreadableImageError, reason_against, reason_against_anomalib

MOST_LISTED = 20


def unreadable_images(datamodule: AnomalibDataModule) -> dict[str, str]:
    """Return why images of a datamodule that is set up cannot be read, or are misread by Anomalib, by path."""
    datasets = _datasets(datamodule)
    reasons = _reasons(reason_against, _paths(datasets))
    by_anomalib = [path for path in _paths(read_by_anomalib(datasets)) if path not in reasons]
    return dict(sorted((reasons | _reasons(_unreadable_by_anomalib, by_anomalib)).items()))


def misread_images(datasets: Iterable[Any], largest_value: int = EIGHT_BITS) -> dict[str, str]:
    """Return why Anomalib reads images differently from this package's commands, by path.

    Datasets whose images are not read by Anomalib are ignored, and so are images that nobody can read.
    """
    return _reasons(partial(_misread, largest_value=largest_value), _paths(read_by_anomalib(datasets)))


def read_by_anomalib(datasets: Iterable[Any]) -> list[Any]:
    """Return those datasets, of any kind, whose images Anomalib's own code reads."""
    return [
        each
        for each in datasets
        if isinstance(each, AnomalibDataset | PredictDataset)
        and type(each).__getitem__.__module__.partition(".")[0] == "anomalib"
    ]


def leave_out(datamodule: AnomalibDataModule, paths: Sequence[str]) -> None:
    """Remove images from the sets of a datamodule that is set up."""
    for data in _datasets(datamodule):
        kept = (~data.samples["image_path"].astype(str).isin(paths)).to_numpy().nonzero()[0]
        if len(kept) < len(data):
            data.subsample(list(kept), inplace=True)


def listed(reasons: dict[str, str]) -> str:
    """Format the first images and reasons as lines of a message."""
    lines = [f"  {path}: {reason}" for path, reason in list(reasons.items())[:MOST_LISTED]]
    more = len(reasons) - len(lines)
    return "\n".join([*lines, f"  and {more} more"] if more else lines)


def _datasets(datamodule: AnomalibDataModule) -> list[AnomalibDataset]:
    data = [getattr(datamodule, f"{name}_data", None) for name in ("train", "val", "test")]
    return [each for each in data if isinstance(each, AnomalibDataset) and "image_path" in each.samples]


def _paths(datasets: Iterable[Any]) -> list[str]:
    """Return the image files of Anomalib's datasets."""
    paths: set[str] = set()
    for each in datasets:
        files = each.image_filenames if isinstance(each, PredictDataset) else each.samples["image_path"]
        paths.update(str(path) for path in files)
    return sorted(paths)


def _reasons(reason: Callable[[str], str], paths: Sequence[str]) -> dict[str, str]:
    """Return the reasons against files, by path."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # decoders release the GIL
        return {path: found for path, found in zip(paths, pool.map(reason, paths), strict=True) if found}


def _unreadable_by_anomalib(path: str) -> str:
    try:
        return reason_against_anomalib(path)
    except UnreadableImageError as error:
        return str(error)


def _misread(path: str, largest_value: int) -> str:
    try:
        return reason_against_anomalib(path, largest_value)
    except UnreadableImageError:  # Anomalib reports it
        return ""
