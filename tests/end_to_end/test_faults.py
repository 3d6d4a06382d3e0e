# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Faults in practice: killed processes, full disks, foreign and hostile files, odd images and names."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import Folder, MVTecAD, PredictDataset
from anomalib.engine import Engine
from anomalib.models import Patchcore
from PIL import Image

from anomalib_softpatch import NoisyDataModule, SoftPatch, SoftPatchPlus, __version__
from anomalib_softpatch.data.manifest import read_manifest

SMALL = {
    "backbone": "resnet18",
    "layers": ["layer1", "layer2"],
    "pre_trained": False,
    "coreset_sampling_ratio": 0.01,
    "visualizer": False,
    "pre_processor": SoftPatch.configure_pre_processor((64, 64)),
}


def engine(folder: Path) -> Engine:
    return Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, logger=False)


def save(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def gray_noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(100, 156, (count, 64, 64), dtype=np.uint8)


# Killed processes and full disks: each scenario is a fit in its own process, forked after the slow imports.

SCENARIOS = """
    import os, resource, signal, sys, traceback
    from pathlib import Path
    import torch
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    import anomalib_softpatch.report.writer as writer
    from anomalib_softpatch import SoftPatch

    root, output = sys.argv[1:]

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def fit(**options):
        model = SoftPatch(
            backbone="resnet18", layers=["layer1", "layer2"], pre_trained=False, coreset_sampling_ratio=0.01,
            visualizer=False, pre_processor=SoftPatch.configure_pre_processor((64, 64)), **options,
        )
        engine = Engine(default_root_dir=output, accelerator="cpu", enable_progress_bar=False, logger=False)
        engine.fit(model, datamodule=MVTecAD(root=root, category="bottle", num_workers=0, train_batch_size=4))

    def save_half(checkpoint, path, save=torch.save):
        save(checkpoint, path)
        os.truncate(path, os.path.getsize(path) // 2)
        die()

    def whole():
        fit()

    def killed_with_features_on_disk():
        SoftPatch.fit = die
        fit(memory_budget=0.0)

    def killed_in_the_report():
        writer.render = die
        fit()

    def killed_in_the_checkpoint():
        torch.save = save_half
        fit()

    def full_for_features():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        fit(memory_budget=0.0)

    def full_for_the_checkpoint():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        fit(noise_report=False)

    for scenario in (whole, killed_with_features_on_disk, killed_in_the_report, killed_in_the_checkpoint,
                     full_for_features, full_for_the_checkpoint):
        child = os.fork()
        if child == 0:
            try:
                scenario()
            except BaseException as error:
                Path(output, scenario.__name__ + ".txt").write_text(f"{type(error).__name__}: {error}")
                os._exit(1)
            os._exit(0)
        print(scenario.__name__, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.__stderr__)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork, rlimits and signals")
def test_killed_or_without_space(mvtec_root: Path, tmp_path: Path, run_forked: Callable) -> None:
    """No incomplete file is left or taken for a complete one, and the first run's results do not change."""
    script = tmp_path / "scenarios.py"
    script.write_text("\n".join(line.removeprefix("    ") for line in SCENARIOS.splitlines()))
    features, output = tmp_path / "features", tmp_path / "results"
    features.mkdir()
    result = run_forked(script, mvtec_root, output, cwd=tmp_path, env={"TMPDIR": str(features)})
    names = [line.split() for line in result.stderr.splitlines() if line.startswith(("whole ", "killed_", "full_"))]
    assert [(name, int(status)) for name, status in names] == [
        ("whole", 0),
        ("killed_with_features_on_disk", -9),
        ("killed_in_the_report", -9),
        ("killed_in_the_checkpoint", -9),
        ("full_for_features", 1),
        ("full_for_the_checkpoint", 1),
    ]
    runs = [output / "SoftPatch" / "MVTecAD" / "bottle" / f"v{index}" for index in range(6)]
    checkpoints, reports = (
        [(run / name).exists() for run in runs] for name in ("weights/lightning/model.ckpt", "noise_report/report.html")
    )
    assert checkpoints == [True, False, False, False, False, False]
    assert reports == [True, False, False, True, False, False]
    assert SoftPatch.load_from_checkpoint(runs[0] / "weights" / "lightning" / "model.ckpt").model.bank_ranges
    # Files that a killed process could not remove are refused, and take no space.
    left = list(runs[3].rglob("*.ckpt"))
    assert len(left) == 1
    with pytest.raises(ValueError, match=r"model.ckpt is not a checkpoint, or is incomplete \(\d+ bytes\): copy it"):
        SoftPatch.load_from_checkpoint(left[0])
    assert not list(runs[5].rglob("*.ckpt"))
    assert not [file for file in features.rglob("*") if file.is_file()]
    message = (output / "full_for_features.txt").read_text()
    assert message.startswith("OSError: Features from image 1 on do not fit on the disk that holds " + str(features))
    assert "TMPDIR" in message
    message = (output / "full_for_the_checkpoint.txt").read_text()
    assert message.startswith(f"OSError: The checkpoint {runs[5] / 'weights'}")
    assert "Is there space left" in message


# Checkpoints


@pytest.fixture(scope="module")
def trained(mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SoftPatch, Path]:
    model, runner = SoftPatch(**SMALL), engine(tmp_path_factory.mktemp("trained"))
    runner.fit(model, datamodule=MVTecAD(root=mvtec_root, category="bottle", num_workers=0))
    return model, Path(runner.trainer.checkpoint_callback.best_model_path)


def predict(model: SoftPatch, checkpoint: Path, folder: Path, images: Path) -> torch.Tensor:
    batches = engine(folder).predict(model, data_path=images, ckpt_path=checkpoint)
    return torch.cat([batch.pred_score for batch in batches])


def changed(checkpoint: Path, path: Path, **entries: object) -> Path:
    torch.save(torch.load(checkpoint, weights_only=True) | entries, path)
    return path


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", "half"])
def test_broken_checkpoint(
    trained: tuple[SoftPatch, Path], mvtec_root: Path, tmp_path: Path, content: bytes | str
) -> None:
    broken = tmp_path / "broken.ckpt"
    whole = trained[1].read_bytes()
    broken.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(ValueError, match=r"broken.ckpt is not a checkpoint, or is incomplete"):
        predict(SoftPatch(**SMALL), broken, tmp_path, mvtec_root / "bottle" / "test")
    with pytest.raises(ValueError, match=r"broken.ckpt is not a checkpoint, or is incomplete"):
        SoftPatch.load_from_checkpoint(broken)


@pytest.mark.parametrize(
    ("model_class", "options", "message"),
    [
        (SoftPatchPlus, {}, "model.ckpt was written by SoftPatch, but the model is SoftPatchPlus: use SoftPatch"),
        (SoftPatch, {"layers": ["layer2"]}, r"layers=\['layer1', 'layer2'\], but the model has layers=\['layer2'\]"),
        (SoftPatch, {"patch_embedding": "unfold"}, "patch_embedding=average, but the model has patch_embedding=unfold"),
        (SoftPatch, {"backbone": "resnet34"}, r"another backbone \(resnet18\) than the model's \(resnet34\)"),
    ],
)
def test_checkpoint_of_other_options(
    trained: tuple[SoftPatch, Path], mvtec_root: Path, tmp_path: Path, model_class: type, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predict(model_class(**(SMALL | options)), trained[1], tmp_path, mvtec_root / "bottle" / "test")


def test_checkpoint_of_another_model(mvtec_root: Path, tmp_path: Path) -> None:
    runner = engine(tmp_path)
    runner.fit(Patchcore(**SMALL), datamodule=MVTecAD(root=mvtec_root, category="bottle", num_workers=0))
    foreign = runner.trainer.checkpoint_callback.best_model_path
    # Before Python 3.11.4, the enumerations in it are pickled as code
    with pytest.raises(ValueError, match=r"(was not written by|is not a checkpoint of) SoftPatch or SoftPatch"):
        predict(SoftPatch(**SMALL), foreign, tmp_path, mvtec_root / "bottle" / "test")
    with pytest.raises(ValueError, match="is not a checkpoint of SoftPatch or SoftPatch"):
        SoftPatch.load_from_checkpoint(foreign)


def test_checkpoint_of_another_version(trained: tuple[SoftPatch, Path], mvtec_root: Path, tmp_path: Path) -> None:
    """A checkpoint without our entry, as before 0.1.0, loads. One of a later format does not."""
    images = mvtec_root / "bottle" / "test"
    older = torch.load(trained[1], weights_only=True)
    entry = {"format": 2, "version": __version__, "model": "SoftPatch"}
    assert older.pop("anomalib_softpatch").items() >= entry.items()
    torch.save(older, tmp_path / "older.ckpt")
    expected = predict(SoftPatch(**SMALL), trained[1], tmp_path, images)
    assert len(expected.unique()) > 1
    assert torch.equal(predict(SoftPatch(**SMALL), tmp_path / "older.ckpt", tmp_path, images), expected)
    entry = {"format": 4, "version": "9.8.7", "model": "SoftPatch"}
    newer = changed(trained[1], tmp_path / "newer.ckpt", anomalib_softpatch=entry)
    message = r"written by anomalib-softpatch 9\.8\.7 in format 4.*formats up to 3: install the newer version"
    with pytest.raises(ValueError, match=r"newer\.ckpt was " + message):
        predict(SoftPatch(**SMALL), newer, tmp_path, images)
    with pytest.raises(ValueError, match=message):
        SoftPatch.load_from_checkpoint(newer)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_checkpoint_of_a_gpu(
    trained: tuple[SoftPatch, Path], mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tensors are marked as tensors of a GPU, as in a checkpoint that was trained on one."""
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        gpu = changed(trained[1], tmp_path / "gpu.ckpt")
    with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
        torch.load(gpu, weights_only=True)
    images = mvtec_root / "bottle" / "test"
    expected = predict(SoftPatch(**SMALL), trained[1], tmp_path, images)
    assert len(expected.unique()) > 1
    assert torch.equal(predict(SoftPatch(**SMALL), gpu, tmp_path, images), expected)
    assert SoftPatch.load_from_checkpoint(gpu).model.memory_bank.device.type == "cpu"


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.target),))


def test_code_in_a_checkpoint_is_not_run(trained: tuple[SoftPatch, Path], mvtec_root: Path, tmp_path: Path) -> None:
    target = tmp_path / "code was run"
    bad = changed(trained[1], tmp_path / "bad.ckpt", hyper_parameters={"backbone": Malicious(target)})
    message = r"bad\.ckpt is not a checkpoint of SoftPatch.*asks to run code \(\w+\.mkdir\).*Nothing has been run"
    loaders = [
        lambda: predict(SoftPatch(**SMALL), bad, tmp_path, mvtec_root / "bottle" / "test"),
        lambda: engine(tmp_path).export(SoftPatch(**SMALL), "torch", export_root=tmp_path, ckpt_path=bad),
        lambda: SoftPatch.load_from_checkpoint(bad),
    ]
    for load in loaders:
        with pytest.raises(ValueError, match=message):
            load()
    assert not target.exists()
    torch.load(bad, weights_only=False)  # unpickling the file does run its code
    assert target.exists()


# Images


def test_half_precision_overflow_is_named(mvtec_root: Path, tmp_path: Path) -> None:
    model, wide = SoftPatch(**SMALL, precision="float16"), SoftPatch(**SMALL)
    with torch.no_grad():
        next(model.model.feature_extractor.parameters()).mul_(4e5)  # activations beyond 65,504, float16's largest
        wide.model.feature_extractor.load_state_dict(model.model.feature_extractor.state_dict())
    datamodule = MVTecAD(root=mvtec_root, category="bottle", num_workers=0)
    engine(tmp_path).fit(wide, datamodule=datamodule)
    assert wide.model.memory_bank.isfinite().all()
    with pytest.raises(ValueError, match=r"infinite features .*half precision overflowed.*bottle/train/good/00\d\.png"):
        engine(tmp_path).fit(model, datamodule=datamodule)
    assert not model.model.bank_ranges


def raw_scores(model: SoftPatch, folder: Path) -> dict[str, float]:
    """Return the raw scores of the images of a folder, by their names."""
    model.eval()
    items = list(PredictDataset(folder))
    images = model.pre_processor.transform(torch.stack([item.image for item in items]))
    names = [Path(item.image_path).stem for item in items]
    return dict(zip(names, model.model(images).pred_score.tolist(), strict=True))


def folder_of(root: Path) -> Folder:
    dirs = {"normal_dir": "good", "normal_test_dir": "good too", "abnormal_dir": "bad"}
    # By default, a random half of the test images is for validation
    return Folder(name="set", root=root, num_workers=0, val_split_mode="same_as_test", **dirs)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for index, pixels in enumerate(gray_noise(5)):
        save(pixels, tmp_path / "images" / "good" / f"{index}.png")
    for name in ("bad", "good too"):
        save(gray_noise(5)[4], tmp_path / "images" / name / "0.png")
    return tmp_path / "images"


def test_modes_of_images(trained: tuple[SoftPatch, Path], images: Path, tmp_path: Path) -> None:
    """Models can be trained on gray, palette, transparent and 16-bit files, and score all as the RGB file."""
    gray = gray_noise(1)[0]
    image = Image.fromarray(gray)
    palette = Image.frombytes("P", (64, 64), gray.tobytes())
    palette.putpalette([value for value in range(256) for _ in range(3)])
    transparent = image.convert("RGBA")
    transparent.putalpha(40)
    modes = {"RGB": image.convert("RGB"), "L": image, "P": palette, "RGBA": transparent, "LA": image.convert("LA")}
    modes["I;16"] = Image.fromarray(gray.astype(np.uint16))  # 16 bits of which 8 are used
    for name, variant in modes.items():
        variant.save(images / "good" / f"mode {name.replace(';', '')}.png")
        with Image.open(images / "good" / f"mode {name.replace(';', '')}.png") as saved:
            assert saved.mode == name
    model, runner = SoftPatch(**SMALL), engine(tmp_path)
    runner.fit(model, datamodule=folder_of(images))
    assert model.model.memory_bank.isfinite().all()
    scores = raw_scores(trained[0], images / "good")
    assert len({score for name, score in scores.items() if name.startswith("mode")}) == 1
    assert len(set(scores.values())) == 5  # the first of the other images is the same one


def turned(file: Path) -> Path:
    """Store an image upside down, with the EXIF orientation that turns it upright."""
    with Image.open(file) as image:
        exif = image.getexif()
        exif[0x0112] = 3
        image.transpose(Image.Transpose.ROTATE_180).save(file, exif=exif)
    return file


def test_images_that_anomalib_misreads(trained: tuple[SoftPatch, Path], images: Path, tmp_path: Path) -> None:
    """Anomalib clips values at 255 and ignores EXIF orientations: such images are refused, counted, and left out."""
    deep = gray_noise(1)[0].astype(np.uint16) * 257
    save(np.dstack([gray_noise(1)[0]] * 3), images / "good" / "5.png")
    for name in ("deep.png", "deep too.png"):
        save(deep, images / "good" / name)
    turned(images / "good" / "4.png")
    deep_reason = r"deep\.png: has values up to 39835 \(mode I;16\), and Anomalib clips values at 255: convert it"
    message = rf"3 images cannot be read(.|\n)*4\.png: is rotated or mirrored by its EXIF(.|\n)*{deep_reason}"
    with pytest.raises(ValueError, match=message):
        engine(tmp_path).fit(SoftPatch(**SMALL), datamodule=folder_of(images))
    model = SoftPatch(**SMALL, skip_unreadable=True)
    engine(tmp_path).fit(model, datamodule=folder_of(images))
    assert len(model.skipped) == 3
    assert not {"deep.png", "deep too.png", "4.png"} & {Path(key).name for key in model.model.denoising.keys}
    for name in ("deep.png", "0.png"):
        save(deep, images / "of the same camera" / name)
    with pytest.raises(ValueError, match=rf"would misread 2 images(.|\n)*{deep_reason}"):
        predict(SoftPatch(**SMALL), trained[1], tmp_path, images / "of the same camera")
    save(deep, images / "bad" / "deep.png")
    with pytest.raises(ValueError, match=rf"would misread 1 image\.(.|\n)*{deep_reason}"):
        engine(tmp_path).test(trained[0], datamodule=folder_of(images))


def test_constant_images_are_neutral(images: Path, tmp_path: Path) -> None:
    for file in (images / "good").iterdir():
        save(np.full((64, 64), 128, dtype=np.uint8), file)
    # At one position all patches are equal, and the mean of equal ranks is one half
    ranks = {"discriminators": ["lof", "gaussian"], "soft_weight": "rank", "neighborhood": 0}
    for model_class, options, neutral in ((SoftPatch, {}, 1.0), (SoftPatchPlus, {}, 1.0), (SoftPatchPlus, ranks, 1.5)):
        model = model_class(**(SMALL | {"coreset_sampling_ratio": 1.0} | options))
        engine(tmp_path).fit(model, datamodule=folder_of(images))
        torch.testing.assert_close(
            model.model.weights, torch.full_like(model.model.weights, neutral), rtol=0.01, atol=0.01
        )
        scores = raw_scores(model, images / "good")
        tolerance = 1e-3 * model.model.memory_bank.norm(dim=1).max().item()
        assert list(scores.values()) == pytest.approx([0] * 5, abs=tolerance)


def test_one_training_image(images: Path, tmp_path: Path) -> None:
    for index in range(1, 5):
        (images / "good" / f"{index}.png").unlink()
    model = SoftPatch(**SMALL)
    extracted = []
    model.model.feature_extractor.register_forward_hook(lambda *_: extracted.append(True))
    with pytest.raises(ValueError, match="at least 2 training images: add some, or switch it off with"):
        engine(tmp_path).fit(model, datamodule=folder_of(images))
    assert not extracted
    model = SoftPatch(**(SMALL | {"coreset_sampling_ratio": 1.0}), threshold=0, soft_weight=False)
    engine(tmp_path).fit(model, datamodule=folder_of(images))
    assert len(model.model.memory_bank) == 16 * 16
    assert raw_scores(model, images / "good")["0"] == pytest.approx(0, abs=1e-2)


def test_names_and_a_manifest_from_windows(tmp_path: Path) -> None:
    """Spaces, commas, quotes and letters of any script work in fit, report, manifest and checkpoint."""
    root = tmp_path / "parts, new"  # Anomalib's Folder refuses letters that are not ASCII in the names of folders
    for index, pixels in enumerate(gray_noise(10)):
        save(pixels, root / "good ones" / f"Bild {index}, 'größer' 画像.png")
    for index, pixels in enumerate(gray_noise(4)):
        pixels[16:40, 16:40] = 0
        save(pixels, root / "big scratch" / f"fehler {index} ж.png")

    def fit(manifest: Path | None, output: Path) -> NoisyDataModule:
        data = Folder(name="Teile ü", root=root, normal_dir="good ones", abnormal_dir="big scratch", num_workers=0)
        noisy = NoisyDataModule(data, noise_ratio=0.3, overlap=True, manifest=manifest)
        runner = engine(output)
        runner.fit(SoftPatch(**SMALL), datamodule=noisy)
        checkpoint = Path(runner.trainer.checkpoint_callback.best_model_path)
        assert len(predict(SoftPatch(**SMALL), checkpoint, output, root / "big scratch")) == 4
        return noisy

    first = fit(None, tmp_path / "Ergebnisse 1 é")
    (report,) = (tmp_path / "Ergebnisse 1 é").rglob("v0/noise_report/images.csv")
    assert set(pd.read_csv(report)["path"]) == set(first.truth.index)
    assert (report.parent / "report.html").is_file()
    (manifest,) = (tmp_path / "Ergebnisse 1 é").rglob("v0/manifest-*.csv")
    assert {Path(path).parts[0] for path in read_manifest(manifest)["image_path"]} == {"big scratch"}
    windows = tmp_path / "von Windows.csv"
    text = manifest.read_text(encoding="utf-8")
    assert "big scratch/fehler" in text
    windows.write_text(text.replace("big scratch/", "big scratch\\"), encoding="utf-8")
    second = fit(windows, tmp_path / "Ergebnisse 2")
    pd.testing.assert_frame_equal(second.noise, first.noise)
