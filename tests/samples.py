# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Small inputs that several tests share."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import timm
import torch
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image
from timm.models import save_for_hf

from anomalib_softpatch.files import write_table
from anomalib_softpatch.images.decisions import COLUMNS, Decision
from anomalib_softpatch.images.paths import to_text

OUTPUTS = {"score": "pred_score", "map": "anomaly_map"}  # names of an exported model's outputs
# Noise scores, with ties
SCORES = st.lists(st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=50)


def mixture(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = 5 * torch.randn(20, columns, generator=generator)
    return centers[torch.randint(20, (rows,), generator=generator)] + torch.randn(rows, columns, generator=generator)


def random_features(images: int, height: int = 4, width: int = 5, channels: int = 8, seed: int = 0) -> torch.Tensor:
    """Return features far from the origin, where distances from expanded squares lose digits."""
    generator = torch.Generator().manual_seed(seed)
    return 100 + torch.randn(images, height, width, channels, generator=generator)


def write_decisions(decisions: Iterable[Decision], file: Path) -> None:
    """Write a file of decisions, as the pages do."""
    regions = {
        each: to_text(each.region) if isinstance(each.region, Path) else str(each.region or "") for each in decisions
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(file, COLUMNS, [[to_text(each.path), each.verdict, region] for each, region in regions.items()])


def save_random_weights(folder: Path, network: str = "test_resnet") -> str:
    """Write a backbone with random weights, always the same ones, and return its name."""
    torch.manual_seed(0)
    save_for_hf(timm.create_model(network, pretrained=False), folder)
    return f"local-dir:{folder}"


def save_brightness_model(file: Path, outputs: dict[str, str], offset: float = 0.0) -> Path:
    """Save an exported model: its score is the brightest value of an image, and its map the mean of the colors."""
    nodes = [
        helper.make_node("Add", ["input", "offset"], ["moved"]),
        helper.make_node("ReduceMax", ["moved"], [outputs["score"]], axes=[1, 2, 3], keepdims=0),
        helper.make_node("ReduceMean", ["moved"], [outputs["map"]], axes=[1], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [
            helper.make_tensor_value_info(outputs["score"], TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info(outputs["map"], TensorProto.FLOAT, ["batch", 1, "height", "width"]),
        ],
        [helper.make_tensor("offset", TensorProto.FLOAT, [], [offset])],
    )
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]), file)
    return file


def save_dark_image(path: Path, brightest: int) -> None:
    """Save a black image of 30 by 20 pixels with one brighter pixel, at (12, 7)."""
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[7, 12] = brightest
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
