# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""A small network of each kind of family in timm: feature maps of the right shape, or a refusal in one line."""

import re
import shutil
from functools import cache
from typing import Any

import pytest
import timm
import torch
from timm.models import register_model, save_for_hf

from anomalib_softpatch.components import PatchFeatureExtractor
from anomalib_softpatch.components.timm_backbone import TimmBackbone

# Grouped by how timm gives features and where channels are last. If families agree in this, in their arguments, in what
# they state about their patches, and in how they refuse a size, only a few small ones are listed.
STAGES = (
    "test_byobnet", "convnext_atto", "densenet121", "efficientnet_lite0", "efficientformerv2_s0", "hrnet_w18_small",
    "inception_v3", "maxvit_pico_rw_256", "mobilenetv3_small_050", "nest_tiny", "pit_ti_224", "pvt_v2_b0", "resnet18",
    "xception41",
)  # fmt: skip
CHANNELS_LAST = ("mambaout_femto", "swinv2_tiny_window8_256")
TOKENS = (
    "coat_tiny", "convit_tiny", "convmixer_768_32", "crossvit_9_240", "cspnext_tiny", "deit_tiny_patch16_224",
    "efficientvim_m1", "eva02_tiny_patch14_224", "levit_128s", "mixer_s32_224", "visformer_tiny",
    "vit_tiny_patch16_224", "xcit_nano_12_p16_224",
)  # fmt: skip
SIDE = 96  # of the images; crossvit resizes any to its own size


@cache
def feature_info(name: str) -> list[dict[str, Any]]:
    """What timm knows about the layers of a network; some networks take seconds to create."""
    return timm.create_model(name, features_only=True).feature_info.info


def layers_of(name: str) -> list[str]:
    """Two layers from the middle of a network."""
    names = list(dict.fromkeys(info["module"] for info in feature_info(name)))
    return [names[len(names) // 3], names[2 * len(names) // 3]]


@pytest.mark.parametrize("name", [*STAGES, *CHANNELS_LAST, *TOKENS])
def test_family(name):
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} does not have {name} yet")
    layers = layers_of(name)
    extractor = PatchFeatureExtractor(name, layers, pre_trained=False).eval()
    height = width = 240 if name.startswith("crossvit") else SIDE
    try:
        features = extractor(torch.rand(1, 3, height, width))
    except ValueError as refusal:
        (line,) = str(refusal).splitlines()
        assert f"'{name}' does not take images of 96 x 96 pixels." in line
        height, width = map(int, re.search(r"for example (\d+) x (\d+)", line).groups())
        features = extractor(torch.rand(1, 3, height, width))
    info = {
        each["module"]: each for each in reversed(feature_info(name))
    }  # if branches have parts of the same name, the first counts
    reduction = info[layers[0]]["reduction"]
    assert features.shape[0] == 1
    for side, rows in zip((height, width), features.shape[1:3], strict=True):
        assert abs(rows - side / reduction) <= max(1, 0.3 * side / reduction)  # some resize or pad images themselves
    assert features.shape[3] == sum(info[layer]["num_chs"] for layer in dict.fromkeys(layers))
    assert features.isfinite().all()


@pytest.mark.parametrize("name", ["mambaout_femto", "swin_tiny_patch4_window7_224"])
def test_channels_last(name):
    """The same values as timm's other way to get features, which has the channels first."""
    backbone = TimmBackbone(name, layers_of(name), pre_trained=False).eval()
    assert backbone.channels_last
    whole = timm.create_model(name, features_only=True, feature_cls="getter", out_indices=backbone.indices).eval()
    # The names of parts of a network of stages have an underscore where those of the whole network have a dot
    state = backbone.feature_extractor.state_dict()
    state = {re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", key): value for key, value in state.items()}
    assert not whole.model.load_state_dict(state, strict=False).unexpected_keys
    images = torch.rand(1, 3, *whole.pretrained_cfg["input_size"][1:])
    for feature, expected in zip(backbone(images).values(), whole(images), strict=True):
        torch.testing.assert_close(feature, expected)


def test_the_name_of_a_folder_does_not_matter(tmp_path):
    """Whether its path contains "vit" or not."""
    images = torch.rand(1, 3, 64, 64)
    for architecture, layers in (("efficientnet_lite0", ["blocks.2"]), ("vit_tiny_patch16_224", ["blocks.2"])):
        folders = [tmp_path / place / architecture.replace("vit_", "") for place in ("activity", "plain")]
        save_for_hf(timm.create_model(architecture), folders[0], safe_serialization=True)
        shutil.copytree(folders[0], folders[1])
        first, second = (PatchFeatureExtractor(f"local-dir:{folder}", layers).eval()(images) for folder in folders)
        assert torch.equal(first, second)


def test_features_of_a_vision_transformer_are_normed():
    """As in Anomalib: the last norm is applied to all blocks."""
    backbone = TimmBackbone("vit_tiny_patch16_224", ["blocks.3"], pre_trained=False).eval()
    images = torch.rand(1, 3, 224, 224)
    network = backbone.feature_extractor
    tokens = network.norm_pre(network._pos_embed(network.patch_embed(images)))
    for block in network.blocks[:4]:
        tokens = block(tokens)
    expected = network.norm(tokens)[:, 1:].mT.reshape(1, 192, 14, 14)
    torch.testing.assert_close(backbone(images)["blocks.3"], expected)


@pytest.mark.parametrize(
    ("name", "size", "fitting"),
    [
        ("eva02_tiny_patch14_224", (256, 256), "252 x 252, 266 x 266"),
        ("eva02_tiny_patch14_224", (200, 300), "196 x 294, 196 x 308, 210 x 294"),
        ("swin_tiny_patch4_window7_224", (256, 256), "224 x 224"),
    ],
)
def test_sizes_that_fit(name, size, fitting):
    layers = layers_of(name)
    extractor = PatchFeatureExtractor(name, layers, pre_trained=False).eval()
    with pytest.raises(ValueError, match=f"does not take images of {size[0]} x {size[1]} pixels.*example {fitting}"):
        extractor(torch.rand(1, 3, *size))
    nearest = tuple(int(side) for side in fitting.split(",")[0].split(" x "))
    assert extractor.nearest_size(*size) == nearest
    assert extractor.nearest_size(*nearest) == nearest
    assert extractor.grid_size(*nearest) == extractor(torch.rand(1, 3, *nearest)).shape[1:3]


@register_model
def computes_with_values(pretrained=False, **options):
    """Network that cannot be made without values, as some of timm's once computed the rates of their dropout."""
    rate = torch.linspace(0, 0.1, 2)[1].item()
    return timm.create_model("test_resnet", pretrained=pretrained, drop_path_rate=rate, **options)


def test_a_network_that_computes_with_values_while_it_is_made():
    found = TimmBackbone("computes_with_values", ["layer2"], pre_trained=False)(torch.zeros(1, 3, 64, 64))
    assert found["layer2"].shape == (1, 48, 8, 8)
