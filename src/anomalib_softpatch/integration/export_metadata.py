# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""What an exported file says of itself: how it prepares images, which its graph does but does not tell.

Whoever has the file can find out by it which part of an image an anomaly map covers. It is in the metadata of an ONNX
file, which OpenVINO takes over when it converts one.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.pre_processing.utils.spec import spec_to_transform, transform_to_spec
from torch import nn
from torchvision.transforms.v2 import Transform

from anomalib_softpatch._version import __version__

if TYPE_CHECKING:
    import onnxruntime
    import openvino

KEY = "anomalib_softpatch"


def describe(path: Path, pre_processor: nn.Module | None) -> None:
    """Write into an ONNX file how it prepares images.

    Args:
        path: The file.
        pre_processor: That of the model that it was exported from.
    """
    import onnx  # noqa: PLC0415  # needed by exports only

    transform = getattr(pre_processor, "transform", None)
    model = onnx.load(path, load_external_data=False)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps({"version": __version__, "transform": transform_to_spec(transform)})
    onnx.save(model, path)


def transform_of(model: "onnxruntime.InferenceSession | openvino.Model") -> Transform | None:
    """Return how a loaded ONNX or OpenVINO file prepares images.

    Args:
        model: What the runtime has made of the file.

    Returns:
        The transform of its pre-processor; ``None`` if it has none, or does not say, as files of before 0.3.
    """
    text: Any
    if hasattr(model, "get_modelmeta"):
        text = model.get_modelmeta().custom_metadata_map.get(KEY)
    else:
        place = ["framework", KEY]  # where OpenVINO puts what it finds in an ONNX file
        text = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None
    return spec_to_transform(json.loads(text)["transform"]) if text else None
