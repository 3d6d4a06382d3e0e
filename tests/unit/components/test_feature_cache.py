# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The feature cache: the same features as without it, and never those of another input."""

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from anomalib_softpatch.components import FeatureCache, PatchFeatureExtractor
from anomalib_softpatch.components import feature_cache as module


def make_extractor(seed=0, layers=("layer1", "layer2"), **options):
    torch.manual_seed(seed)
    return PatchFeatureExtractor("test_resnet", layers, pre_trained=False, **options)


@pytest.fixture(scope="module")
def extractor():
    return make_extractor()


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_same_features_bit_for_bit(extractor, images, tmp_path):
    """With all, some or none of the images in the cache, and in another order."""
    with torch.no_grad():
        expected = extractor(images)
    cache = FeatureCache(extractor, tmp_path)
    assert torch.equal(cache(images[:3]), expected[:3])
    assert (cache.found, cache.computed) == (0, 3)
    again = FeatureCache(make_extractor(), tmp_path)
    assert torch.equal(again(images.flip(0)), expected.flip(0))
    assert (again.found, again.computed) == (3, 3)
    assert torch.equal(again(images), expected)
    assert (again.found, again.computed) == (9, 3)
    assert len(entries(tmp_path)) == 6


def test_found_features_need_no_backbone(extractor, images, tmp_path, monkeypatch):
    FeatureCache(extractor, tmp_path)(images)
    cache = FeatureCache(extractor, tmp_path)
    monkeypatch.setattr(extractor, "_extract", lambda _images: pytest.fail("the backbone was run"))
    cache(images)


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"layers": ("layer1",)}, {"patch_embedding": "unfold"}, {"dtype": torch.float64}], ids=str
)
def test_another_extractor_finds_nothing(extractor, images, tmp_path, options):
    """With other weights, layers, embedding or precision."""
    FeatureCache(extractor, tmp_path)(images[:1])
    other = make_extractor(**{name: value for name, value in options.items() if name != "dtype"})
    other.to(options.get("dtype", torch.float32))
    cache = FeatureCache(other, tmp_path)
    with torch.no_grad():
        assert torch.equal(cache(images[:1]), other(images[:1]))
    assert cache.computed == 1


def test_other_inputs_find_nothing(extractor, images, tmp_path):
    """An augmented image, another size with the same bytes, and another precision."""
    cache = FeatureCache(extractor, tmp_path)
    cache(images[:1])
    cache(images[:1].flip(3))
    cache(images[:1].reshape(1, 3, 32, 128))
    with torch.autocast("cpu", torch.bfloat16):
        cache(images[:1])
    assert (cache.found, cache.computed) == (0, 4)


def flipped(content):
    """Return the content with a different last bit."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [lambda content: content[:-10], lambda _content: b"", flipped])
def test_damaged_entry_is_computed_again(extractor, images, tmp_path, damage, caplog):
    expected = FeatureCache(extractor, tmp_path)(images[:1])
    (entry,) = entries(tmp_path)
    entry.write_bytes(damage(entry.read_bytes()))
    cache = FeatureCache(extractor, tmp_path)
    assert torch.equal(cache(images[:1]), expected)
    assert (cache.found, cache.computed) == (0, 1)
    assert "is damaged" in caplog.text
    assert FeatureCache(extractor, tmp_path)(images[:1]).equal(expected)
    assert len(entries(tmp_path)) == 1


def test_full_disk(extractor, images, tmp_path, monkeypatch):
    """Features that were written are found again."""
    write_bytes = Path.write_bytes

    def full(path, content):
        if len(entries(tmp_path)) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    cache = FeatureCache(extractor, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=f"{tmp_path}.*No space left.*Those of 2 others are there"):
            cache(images)
    assert len(entries(tmp_path)) == 2
    cache(images)
    assert cache.found == 2


def test_size_is_known_before(extractor, images, tmp_path, monkeypatch):
    cache = FeatureCache(extractor, tmp_path)
    cache(images[:2])
    size = sum(entry.stat().st_size for entry in entries(tmp_path))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _path: usage(5 * size + module.RESERVE))
    assert str(tmp_path) in cache.check_space(2, 12)  # ten more take five times as much
    with pytest.raises(OSError, match=r"features of 13 images take .* Give feature_cache a folder on a larger disk"):
        cache.check_space(2, 13)


def test_folder_that_cannot_be_made(extractor, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/cache' cannot be written to: Not a directory\. Give feature_cache"):
        FeatureCache(extractor, tmp_path / "file" / "cache")
