# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The engine that trained, its checkpoint and the exported files give an image the same verdict."""

import io
import logging
import re
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from anomalib.callbacks import TilerConfigurationCallback
from anomalib.data import MVTecAD
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, GaussianBlur, Grayscale, Normalize, Pad, Resize
from torchvision.transforms.v2.functional import pil_to_tensor

from anomalib_softpatch import SoftPatch
from anomalib_softpatch.models import load_model
from anomalib_softpatch.predictions.metadata import KEY
from anomalib_softpatch.predictions.verification import verify
from anomalib_softpatch.scoring.command import predict

HEIGHT, WIDTH = 500, 700
SQUARE = (slice(200, 300), slice(100, 250))  # black in defective images: rows and columns
SMALL = {
    "backbone": "test_resnet", "layers": ["layer1", "layer2"], "pre_trained": False, "coreset_sampling_ratio": 0.02,
    "visualizer": False, "noise_report": False,
}  # fmt: skip
NORMALIZE = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SETTINGS = {
    "padding and center crop": ([Resize((112, 112)), Pad(8), CenterCrop((96, 128))], {}),
    "tiles that do not fit": ([Resize((112, 160))], {"tile_size": 64, "stride": 48}),
}


def write(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make images much larger than the model's size, with fine noise that only antialiasing averages out."""
    root = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for folder, count in (("train/good", 8), ("test/good", 4), ("test/broken", 4)):
        for number in range(count):
            pixels = rng.integers(60, 196, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
            if folder == "test/broken":
                mask[SQUARE] = 255
                write(mask, root / "bottle" / "ground_truth" / "broken" / f"{number:03}_mask.png")
            pixels[mask > 0] = 0
            write(pixels, root / "bottle" / folder / f"{number:03}.png")
    return root


def engine(folder: Path, tiles: dict[str, int]) -> Engine:
    callbacks = [TilerConfigurationCallback(enable=True, **tiles)] if tiles else []
    return Engine(
        default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, logger=False, callbacks=callbacks
    )


def make(transforms: list, **options: object) -> SoftPatch:
    return SoftPatch(**SMALL, pre_processor=PreProcessor(Compose([*transforms, NORMALIZE])), **options)


@pytest.fixture(scope="module", params=SETTINGS)
def trained(request, root, tmp_path_factory):
    """Return the predictions of the engine that trained, its model, and the checkpoint."""
    transforms, tiles = SETTINGS[request.param]
    folder = tmp_path_factory.mktemp("trained")
    model, runner = make(transforms), engine(folder, tiles)
    runner.fit(model, datamodule=MVTecAD(root=root, category="bottle", num_workers=0))
    checkpoint = Path(runner.trainer.checkpoint_callback.best_model_path)
    expected = {
        str(path): (float(score), bool(label), anomaly_map)
        for batch in runner.predict(model, data_path=root / "bottle" / "test")
        for path, score, label, anomaly_map in zip(
            batch.image_path, batch.pred_score, batch.pred_label, batch.anomaly_map, strict=True
        )
    }
    assert {label for _, label, _ in expected.values()} == {True, False}
    return expected, model, checkpoint, folder


def test_model_from_the_checkpoint(trained):
    """It gives the same numbers. If two patches of the bank are equally near, either one's weight is in the map."""
    expected, _, checkpoint, _ = trained
    model = load_model(checkpoint).eval()
    for path, (score, label, anomaly_map) in expected.items():
        with torch.no_grad():
            output = model(pil_to_tensor(Image.open(path))[None] / 255)
        assert float(output.pred_score) == pytest.approx(score, abs=1e-6)
        assert bool(output.pred_label) == label
        torch.testing.assert_close(output.anomaly_map.squeeze(), anomaly_map.squeeze(), rtol=0, atol=1e-3)


def check_command(expected, images, output, **source):
    """Check score, verdict and peak in the table of `anomalib-softpatch predict`."""
    predict(images, output=output, **source)
    table = pd.read_csv(output).set_index("path")
    assert set(table.index) == expected.keys()
    for path, (score, label, _) in expected.items():
        row = table.loc[path]
        assert row["score"] == pytest.approx(score, abs=1e-5)
        assert (row["verdict"] == "anomalous") == label
        if "broken" in path:
            assert label
            rows, columns = SQUARE
            assert rows.start <= row["y"] < rows.stop
            assert columns.start <= row["x"] < columns.stop


def test_command_with_the_checkpoint(trained, root, tmp_path):
    expected, _, checkpoint, _ = trained
    check_command(expected, root / "bottle" / "test", tmp_path / "predictions.csv", ckpt_path=checkpoint, device="cpu")


@pytest.fixture(scope="module")
def exported(trained):
    """Return an exported file, and the messages of the export."""
    *_, checkpoint, folder = trained
    logger, stream = logging.getLogger("anomalib_softpatch"), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    file = Path(engine(folder, {}).export(load_model(checkpoint), ExportType.ONNX, export_root=folder))
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)
    return file, stream.getvalue()


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_command_with_exported_files(kind, trained, exported, root, tmp_path, capsys, monkeypatch):
    """The files were exported from a loaded checkpoint, both from the same graph; see `test_export.py`."""
    expected, _, checkpoint, _ = trained
    images = root / "bottle" / "test"
    onnx_file, messages = exported
    assert re.search(
        r"model\.onnx in ONNX Runtime .* [13] images?, scores differ by up to \S+, 0 verdicts differ", messages
    )
    file = onnx_file
    if kind == "openvino":
        model = load_model(checkpoint)
        monkeypatch.setattr(model, "to_onnx", lambda *_args, **_kwargs: onnx_file)
        file = Path(engine(tmp_path, {}).export(model, ExportType.OPENVINO, export_root=tmp_path))
    capsys.readouterr()  # PyTorch's own messages about the export
    verify(file, images)
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"(ONNX Runtime|OpenVINO) [\d.]+, float32, against the model: [13] images", lines[0])
    assert "against float32: 8 images" in lines[-1]
    assert "0 verdicts differ" in lines[0]
    check_command(expected, images, tmp_path / "predictions.csv", model=file)


@pytest.mark.parametrize("trained", ["padding and center crop"], indirect=True)
def test_a_file_that_decides_differently(exported, tmp_path):
    """The golden scores in the file are changed, as if its runtime computed something else."""
    file, content = tmp_path / "model.onnx", onnx.load(exported[0])
    (entry,) = [each for each in content.metadata_props if each.key == KEY]
    entry.value = entry.value.replace('"score": 0.', '"score": 0.0')
    onnx.save(content, file)
    with pytest.raises(ValueError, match=r"model\.onnx does not decide on this machine as the model did"):
        verify(file)
    content.metadata_props.remove(entry)
    onnx.save(content, file)
    with pytest.raises(ValueError, match="holds no golden images"):
        verify(file)


def test_other_tiles_are_refused(trained, root):
    """A checkpoint stores its tiles, and they cannot be replaced by others."""
    _, model, checkpoint, folder = trained
    tiled = model.model.tiler is not None
    runner = engine(folder / "others", {"tile_size": 32, "stride": 32})
    message = r"was made with tiles=.*, but the model has tiles=.*\[32, 32\]"
    with pytest.raises(ValueError, match=message):
        runner.predict(make([Resize((128, 128))]), data_path=root / "bottle" / "test", ckpt_path=checkpoint)
    assert (load_model(checkpoint).model.tiler is not None) == tiled


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([Resize((64, 64)), GaussianBlur(3)], "a checkpoint cannot hold it .*GaussianBlur"),
        ([CenterCrop(400), Resize((64, 64))], "CenterCrop before a Resize"),
        ([Resize((128, 128)), Resize((64, 64))], "Resize before a Resize"),
    ],
)
def test_pre_processors_that_would_differ_later_are_refused(transforms, message, root, tmp_path):
    with pytest.raises(ValueError, match=message):
        engine(tmp_path, {}).fit(make(transforms), datamodule=MVTecAD(root=root, category="bottle", num_workers=0))


def test_gray_before_the_resize_gives_the_same(root, tmp_path):
    model = make([Grayscale(3), Resize((64, 64))])
    engine(tmp_path, {}).fit(model, datamodule=MVTecAD(root=root, category="bottle", num_workers=0))


def test_a_size_of_one_side_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match="give Resize a height and a width"):
        make([Resize(64)]).to_onnx(tmp_path)


def test_post_processor_comes_with_the_checkpoint(root, tmp_path):
    """Anomalib's own post-processor normalizes in another way than that of these models."""
    model, runner = make([Resize((64, 64))], post_processor=PostProcessor()), engine(tmp_path, {})
    runner.fit(model, datamodule=MVTecAD(root=root, category="bottle", num_workers=0))
    checkpoint = Path(runner.trainer.checkpoint_callback.best_model_path)
    images = torch.rand(3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load_model(checkpoint).eval()(images).pred_score, model.eval()(images).pred_score)
    with pytest.raises(ValueError, match=r"was made with the post_processor .*\.PostProcessor, but the model has"):
        runner.predict(make([Resize((64, 64))]), data_path=root / "bottle" / "test", ckpt_path=checkpoint)
