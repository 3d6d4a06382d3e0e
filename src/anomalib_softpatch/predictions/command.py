# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-softpatch predict``: verdicts for images, from a checkpoint or an exported file."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2 import Transform

from anomalib_softpatch.predictions.runtimes import load_runtime
from anomalib_softpatch.predictions.table import Prediction, peak, summary, verdict, write_predictions
from anomalib_softpatch.report.folder import find_images
from anomalib_softpatch.report.reading import read_image

# Image of shape (1, 3, height, width) in [0, 1] -> score, label or None, map of shape (height, width)
Predictor = Callable[[np.ndarray], tuple[float, object, np.ndarray]]
NORMALIZED_THRESHOLD = 0.5  # of exported files, whose post-processor is inside


def predict(
    images: Path,
    ckpt_path: Path | None = None,
    model: Path | None = None,
    output: Path = Path("predictions.csv"),
    device: str = "auto",
) -> None:
    """Say of each image whether it is anomalous, how much, and where most.

    Backbone, layers, image size and threshold come with the checkpoint or the exported file. A line is printed for each
    image, and predictions.csv holds the same.

    Args:
        images: Folder of images, or one image.
        ckpt_path: Checkpoint of SoftPatch or SoftPatchPlus that anomalib train wrote (model.ckpt).
        model: Exported model (.onnx or .xml) instead of a checkpoint.
        output: CSV file to write: path, score, threshold, verdict, x and y of the highest pixel.
        device: Device for a checkpoint, for example cpu or cuda; auto for a GPU if there is one.
    """
    if (ckpt_path is None) == (model is None):
        msg = "Give either ckpt_path (a checkpoint) or model (an exported .onnx or .xml file)."
        raise ValueError(msg)
    file = ckpt_path or model
    if file is None or not file.is_file():
        msg = f"{file} is not a file."
        raise FileNotFoundError(msg)
    paths, skipped = ([images], []) if images.is_file() else find_images(images)
    predictor, threshold, transform = _load_checkpoint(file, device) if ckpt_path else _load_exported(file)
    predictions = []
    for path in paths:
        try:
            tensor, _ = read_image(path)
        except ValueError as error:
            skipped.append((str(path), str(error)))
            continue
        score, label, anomaly_map = predictor(tensor[None].numpy())
        x, y = peak(anomaly_map, (tensor.shape[2], tensor.shape[1]), transform)
        predictions.append(Prediction(str(path), score, threshold, verdict(score, threshold, label), x, y))
        sys.stdout.write(f"{predictions[-1].line()}\n")
        sys.stdout.flush()
    write_predictions(predictions, output)
    for name, reason in skipped:
        sys.stderr.write(f"skipped {name}: {reason}\n")
    sys.stdout.write(f"{summary(predictions)}, {len(skipped)} files skipped: {output}\n")


def _load_checkpoint(path: Path, device: str) -> tuple[Predictor, float, Transform | None]:
    from anomalib_softpatch.models import load_model  # noqa: PLC0415  # not needed for exported files
    from anomalib_softpatch.predictions.threshold import normalized_threshold  # noqa: PLC0415  # likewise

    model = load_model(path).eval().to(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)

    def run(image: np.ndarray) -> tuple[float, object, np.ndarray]:
        with torch.inference_mode():
            output = model(torch.from_numpy(image).to(model.device))
        return float(output.pred_score[0]), None, output.anomaly_map[0].float().cpu().numpy().squeeze()

    return run, normalized_threshold(model.post_processor), getattr(model.pre_processor, "transform", None)


def _load_exported(path: Path) -> tuple[Predictor, float, Transform | None]:
    runtime = load_runtime(path)

    def run(image: np.ndarray) -> tuple[float, object, np.ndarray]:
        prediction = runtime.predict(image)
        return prediction.score, prediction.label, prediction.anomaly_map

    return run, NORMALIZED_THRESHOLD, runtime.metadata.transform
