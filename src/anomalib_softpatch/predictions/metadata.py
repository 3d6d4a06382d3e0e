# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Metadata of an exported file: how it prepares images, its training images, and the scores of its golden images.

They are stored in the metadata of an ONNX file, and OpenVINO keeps them when it converts one.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_softpatch._version import __version__
from anomalib_softpatch.images.reading import EIGHT_BITS
from anomalib_softpatch.predictions.golden import GoldenImage
from anomalib_softpatch.predictions.training import TrainingFacts

if TYPE_CHECKING:
    import onnxruntime
    import openvino
    from torchvision.transforms.v2 import Transform

KEY = "anomalib_softpatch"
WHOLE_IMAGE = {"Compose", "Grayscale", "Normalize", "Resize"}  # transforms that show a model the whole image


@dataclass(frozen=True)
class Metadata:
    """What an exported file stores about its model."""

    transform: "Transform | None" = None  # of its pre-processor; None if it shows the model the whole image
    golden: Sequence[GoldenImage] = ()
    largest_value: int = EIGHT_BITS  # integer value that is read as 1 in images of more than 8 bits
    training: TrainingFacts = field(default_factory=TrainingFacts)


def write_metadata(path: Path, metadata: Metadata) -> None:
    """Write metadata into an ONNX file."""
    import onnx  # noqa: PLC0415  # needed by exports only
    from anomalib.pre_processing.utils.spec import transform_to_spec  # noqa: PLC0415  # imports torch

    content = {
        "version": __version__,
        "transform": transform_to_spec(metadata.transform),
        "golden": [asdict(image) for image in metadata.golden],
        "largest_value": metadata.largest_value,
        "training": asdict(metadata.training),
    }
    model = onnx.load(path, load_external_data=False)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(content)
    onnx.save(model, path)


def read_metadata(model: "onnxruntime.InferenceSession | openvino.Model") -> Metadata:
    """Return the metadata of a loaded ONNX or OpenVINO file; those of files from before version 0.3 are empty."""
    text: Any
    if hasattr(model, "get_modelmeta"):
        text = model.get_modelmeta().custom_metadata_map.get(KEY)
    else:
        place = ["framework", KEY]  # where OpenVINO puts the metadata of an ONNX file
        text = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None
    if not text:
        return Metadata()
    content = json.loads(text)
    transform = None
    if not _names(content["transform"]) <= WHOLE_IMAGE:
        from anomalib.pre_processing.utils.spec import spec_to_transform  # noqa: PLC0415  # imports torch

        transform = spec_to_transform(content["transform"])
    return Metadata(
        transform,
        [GoldenImage(**image) for image in content["golden"]],
        content.get("largest_value", EIGHT_BITS),
        TrainingFacts.from_plain(content.get("training", {})),
    )


def _names(specification: Any) -> set[str]:
    """Return the names of all transforms in a specification."""
    if isinstance(specification, list):
        return set().union(*map(_names, specification))
    if not isinstance(specification, dict):
        return set()
    name = specification.get("class_path")
    return _names(list(specification.values())) | ({name.rpartition(".")[2]} if isinstance(name, str) else set())
