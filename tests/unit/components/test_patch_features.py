# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Patch features against Anomalib's PatchCore and PyTorch's own pooling."""

import pytest
import torch
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_softpatch.components import PatchFeatureExtractor, patch_features
from anomalib_softpatch.components.patch_features import pool_channels, unfold


def test_average_equals_anomalib():
    layers = ["layer1", "layer2", "layer3"]
    ours = PatchFeatureExtractor("resnet18", layers, pre_trained=False)
    theirs = PatchcoreModel(layers, "resnet18", pre_trained=False).train()
    theirs.feature_extractor.load_state_dict(ours.backbone.state_dict())
    images = torch.randn(6, 3, 64, 96)  # more than pass through the backbone together
    features = ours(images)
    assert features.shape == (6, 16, 24, 64 + 128 + 256)
    torch.testing.assert_close(features.reshape(-1, 448), theirs(images))


def test_unfold_equals_pytorch():
    features = torch.randn(2, 5, 6, 7)
    torch.testing.assert_close(unfold(features), F.unfold(features, 3, padding=1).view(2, 45, 6, 7))


@pytest.mark.parametrize(("channels", "size"), [(9, 4), (4608, 1024), (288, 1024), (1024, 1024), (2048, 1024), (7, 1)])
def test_pool_channels_equals_pytorch(channels, size):
    features = torch.randn(2, channels, 2, 3)
    expected = F.adaptive_avg_pool1d(features.permute(0, 2, 3, 1).reshape(12, 1, channels), size)
    actual = pool_channels(features, size).permute(0, 2, 3, 1).reshape(12, 1, size)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_unfold_equals_the_papers_order_of_steps():
    """PatchCore first resizes the unfolded neighborhoods and then pools them, patch by patch."""
    extractor = PatchFeatureExtractor("resnet18", ["layer1", "layer2"], pre_trained=False, patch_embedding="unfold")
    images = torch.randn(1, 3, 64, 64)
    layers = extractor.backbone(images)
    pooled = []
    for name in ("layer1", "layer2"):
        patches = F.interpolate(unfold(layers[name]), size=(16, 16), mode="bilinear")
        pooled.append(F.adaptive_avg_pool1d(patches.flatten(2).mT.reshape(256, 1, -1), 1024))
    expected = F.adaptive_avg_pool1d(torch.cat(pooled, dim=1).reshape(256, 1, -1), 1024).reshape(256, 1024)
    torch.testing.assert_close(extractor(images).flatten(0, 2), expected, rtol=1e-4, atol=1e-5)


def test_vision_transformer():
    extractor = PatchFeatureExtractor("vit_small_patch14_dinov2", ["blocks.2", "blocks.5"], pre_trained=False)
    assert extractor(torch.randn(1, 3, 56, 84)).shape == (1, 4, 6, 768)


def test_module_as_backbone():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2))
    extractor = PatchFeatureExtractor(backbone, ["0", "2"])
    assert extractor(torch.randn(1, 3, 33, 33)).shape == (1, 16, 16, 24)


@pytest.mark.parametrize(
    ("backbone", "layers"), [("resnet18", ["layer2", "layer1"]), ("vit_tiny_patch16_224", ["blocks.5", "blocks.2"])]
)
def test_layers_in_any_order(backbone, layers):
    """The first layer determines the grid, whichever it is."""
    extractor = PatchFeatureExtractor(backbone, layers, pre_trained=False)
    reverse = PatchFeatureExtractor(backbone, layers[::-1], pre_trained=False)
    reverse.load_state_dict(extractor.state_dict())
    images = torch.randn(1, 3, 64, 64)
    features = {layer: feature.shape for layer, feature in extractor.backbone(images).items()}
    assert features == {layer: feature.shape for layer, feature in reverse.backbone(images).items()}
    for layer, feature in reverse.backbone(images).items():
        torch.testing.assert_close(extractor.backbone(images)[layer], feature)
    assert extractor(images).shape[1:3] == features[layers[0]][2:]


def test_local_weights(backbone):
    extractor = PatchFeatureExtractor(backbone, ["blocks.2", "blocks.4"])
    assert extractor(torch.randn(1, 3, 64, 64)).shape == (1, 8, 8, 128)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layers": ["layer2", "layer9"]}, ValueError, r"layers=\['layer9'\] not found .*'resnet18'.*layer4"),
        ({"layers": []}, ValueError, "at least one layer"),
        ({"backbone": "vit_tiny_patch16_224", "layers": ["blocks.12"]}, ValueError, r"blocks\.12"),
        ({"backbone": "vit_tiny_patch16_224", "layers": ["layer1"]}, ValueError, "layer1"),
        ({"backbone": nn.Sequential(nn.Conv2d(3, 8, 3)), "layers": ["conv"]}, ValueError, "conv"),
        ({"backbone": "no_such_net"}, ValueError, "no_such_net.* is not a model of timm"),
        ({"backbone": "local-dir:/no/such/folder", "pre_trained": True}, ValueError, "/no/such/folder.*no config.json"),
        ({"patch_embedding": "median"}, ValueError, "Unknown patch_embedding 'median'"),
    ],
)
def test_bad_input(arguments, error, message):
    arguments = {"backbone": "resnet18", "layers": ["layer2"], "pre_trained": False} | arguments
    with pytest.raises(error, match=message):
        PatchFeatureExtractor(**arguments)


def test_unreachable_hub(monkeypatch):
    """The message explains what to do without the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "/nonexistent")

    def unreachable(*_args, **_kwargs):
        msg = "hub not reachable"
        raise OSError(msg)

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(RuntimeError, match=r"hub cannot be reached .*'local-dir:<folder>'"):
        PatchFeatureExtractor("resnet18", ["layer2"], pre_trained=True)
    monkeypatch.setattr(patch_features, "check_weights", lambda _: None)  # the hub can be reached, but loading fails
    with pytest.raises(RuntimeError, match=r"hub not reachable\n.*'local-dir:<folder>'"):
        PatchFeatureExtractor("resnet18", ["layer2"], pre_trained=True)
