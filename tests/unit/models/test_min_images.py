# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""How many training images must show something for it to be normal: scores of defects among them, and bad values.

A defect is expected to score as much as after a fit without its image.
"""

import io
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from anomalib_softpatch import SoftPatch, SoftPatchPlus
from anomalib_softpatch.anomalib_command.last_words import bad_input
from anomalib_softpatch.components.support_radii import support_of

IMAGES = 30
PATCHCORE = {"min_images": 1, "score_smoothing": 0.0}


def normal_images(count: int = IMAGES) -> np.ndarray:
    """Aligned photographs of one part: bright stripes on a gradient, of some brightness, with some noise."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:64, :64]
    base = 90 + 0.7 * row + 40 * (np.sin(column / 4 + row / 11) > 0.3)
    brightness = rng.normal(0, 4, (count, 1, 1))
    pixels = base + brightness + rng.normal(0, 4, (count, 64, 64))
    return np.repeat(pixels[..., None], 3, axis=3).clip(0, 255).astype(np.uint8)


def with_defect(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[20:36, 24:40] = np.random.default_rng(1).integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    return image


def as_jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=90)
    return np.asarray(Image.open(file))


def rotated(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).rotate(1, resample=Image.Resampling.BICUBIC))


# Near copies of these small images are not recognized, so each counts as another image
COPIES = {"exact": 3 * [lambda image: image], "JPEG": [as_jpeg], "one degree": [rotated]}


def to_tensor(images: list[np.ndarray] | np.ndarray) -> torch.Tensor:
    images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean[:, None, None]) / deviation[:, None, None]


class Backbone(nn.Module):
    """Two layers of random filters, the same in all tests."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.first = nn.Sequential(nn.Conv2d(3, 24, 5, 2, 2), nn.ReLU(), nn.Conv2d(24, 24, 3, 2, 1), nn.ReLU())
            self.second = nn.Sequential(nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU())

    def forward(self, images):
        return self.second(self.first(images))


def new_model(model_class=SoftPatchPlus, **options):
    defaults = {"backbone": Backbone(), "layers": ["first", "second"], "pre_trained": False, "visualizer": False}
    return model_class(**(defaults | options))


def fit(images, model_class=SoftPatchPlus, **options):
    model = new_model(model_class, **({"coreset_sampling_ratio": 0.1} | options)).model
    model.train()(images)
    model.fit((64, 64))
    return model.eval()


@cache
def training_images():
    """Normal images, the first one with a defect."""
    images = list(normal_images())
    images[0] = with_defect(images[0])
    return images


@cache
def scores_without_the_defect(**options):
    """Scores of the training images after a fit without the one that has a defect."""
    images = to_tensor(training_images())
    return fit(images[1:], **options)(images)


def peak(output, image=0):
    """Highest value of a map where the defect is."""
    return float(output.anomaly_map[image, 0, 20:36, 24:40].max())


def test_the_defect_scores_high_after_a_fit_without_it():
    """With both ways of scoring, normal images score less."""
    for options in ({}, PATCHCORE):
        scores = scores_without_the_defect(**options).pred_score
        assert scores[0] > 1.5 * scores[1:].max()


@pytest.mark.parametrize(
    ("min_images", "copies"), [("auto", "exact"), ("auto", "JPEG"), ("auto", "one degree"), (2, "exact")]
)
def test_a_defect_in_training_scores_as_if_it_were_not(copies, min_images):
    """Several copies of its image do not change that."""
    images = [*training_images(), *(copy(training_images()[0]) for copy in COPIES[copies])]
    expected = scores_without_the_defect()
    found = fit(to_tensor(images), min_images=min_images)(to_tensor(training_images()))
    assert float(found.pred_score[0]) == pytest.approx(float(expected.pred_score[0]), rel=0.25)
    assert peak(found) == pytest.approx(peak(expected), rel=0.25)
    assert found.pred_score[0] > 1.5 * found.pred_score[1:].max()


def test_patchcore_takes_a_defect_in_training_for_normal():
    images = to_tensor(training_images())
    expected = scores_without_the_defect(**PATCHCORE)
    found = fit(images, **PATCHCORE)(images)
    assert found.pred_score[0] < 0.5 * expected.pred_score[0]
    assert peak(found) < 0.25 * peak(expected)
    whole = fit(images[:8], coreset_sampling_ratio=1.0, **PATCHCORE)(images[:8])
    assert whole.pred_score.abs().max() < 1e-3 * expected.pred_score[0]


def test_a_defect_of_two_images():
    """The same defect in another image does not make it normal where three images must show it."""
    images = training_images()
    images = [*images[:5], with_defect(images[5]), *images[6:]]
    expected = float(scores_without_the_defect().pred_score[0])
    found = float(fit(to_tensor(images), min_images=3)(to_tensor(images)).pred_score[0])
    assert found == pytest.approx(expected, rel=0.2)


def test_normal_images_keep_their_scores():
    """New images score about as they do without radii."""
    images = to_tensor(normal_images(2 * IMAGES))
    plain, bounded = (fit(images[:IMAGES], min_images=number)(images[IMAGES:]).pred_score for number in (1, "auto"))
    assert float(bounded.median()) == pytest.approx(float(plain.median()), rel=0.3)
    assert (bounded >= plain * (1 - 1e-5)).all()


def test_training_images_look_new():
    """Training images score about as new ones do, because the radii are calibrated for it."""
    images = to_tensor(normal_images(2 * IMAGES))
    scores = fit(images[:IMAGES])(images).pred_score
    assert float(scores[:IMAGES].median()) == pytest.approx(float(scores[IMAGES:].median()), rel=0.2)


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1), (1.0, 1), (2, 2), (3, 3), (3.0, 3), ("auto", 3), (0.1, 3), (0.11, 4), (0.001, 2), (500, 500)],
)
def test_number_of_images(value, number):
    """A share is rounded up, and at least two."""
    assert max(support_of(value, IMAGES), default=0) + 1 == number


@pytest.mark.parametrize(
    ("model_class", "value", "number"),
    [
        (SoftPatch, 1, 1),
        (SoftPatch, 0.11, 4),
        (SoftPatchPlus, 1.0, 1),
        (SoftPatchPlus, "auto", 3),
        (SoftPatch, 500, 500),
    ],
)
def test_a_fit_has_that_number(model_class, value, number):
    """If one image is enough, there are no radii."""
    model = fit(to_tensor(normal_images()), model_class, min_images=value, coreset_sampling_ratio=0.02)
    assert max(model.denoising.support, default=0) + 1 == number
    assert (model.radii == 0).all() if number == 1 else (model.radii > 0).all()


@pytest.mark.parametrize(
    ("share", "images", "number"), [(0.07, 100, 7), (0.14, 50, 7), (0.55, 100, 55), (0.071, 100, 8)]
)
def test_rounding_errors_of_a_share_do_not_count(share, images, number):
    """In floating point, 0.07 times 100 is a little more than 7."""
    assert support_of(share, images) == {number - 1: 1.0}


def test_copies_do_not_count_in_a_share():
    images = [*normal_images(20), *normal_images(20)[:10]]
    assert fit(to_tensor(images), min_images=0.25).denoising.support == {4: 1.0}


@pytest.mark.parametrize("min_images", ["auto", 1, 0.9, 50])
@pytest.mark.parametrize("kind", ["ten", "two", "all equal", "two that are equal", "black"])
def test_few_or_equal_images(kind, min_images):
    images = {
        "ten": normal_images(10),
        "two": normal_images(2),
        "all equal": normal_images(1).repeat(12, 0),
        "two that are equal": normal_images(1).repeat(2, 0),
        "black": np.zeros((6, 64, 64, 3), dtype=np.uint8),
    }[kind]
    model = fit(to_tensor(images), min_images=min_images)
    output = model(to_tensor([images[0], with_defect(images[0])]))
    assert model.radii.isfinite().all()
    assert output.pred_score.isfinite().all()
    assert output.pred_score[1] > output.pred_score[0]


@pytest.mark.parametrize("min_images", ["auto", 2, 0.5])
def test_one_image(min_images):
    with pytest.raises(ValueError, match=r"takes at least 2 training images, got 1\. With min_images=1, ") as caught:
        fit(to_tensor(normal_images(1)), min_images=min_images)
    assert "\n" not in str(caught.value)
    assert fit(to_tensor(normal_images(1)), min_images=1)(to_tensor(normal_images(1))).pred_score.isfinite().all()


@pytest.mark.parametrize("value", [0, -1, 1.5, "many", True, False, 0.0, -0.5, None, float("nan"), float("inf")])
@pytest.mark.parametrize("model_class", [SoftPatch, SoftPatchPlus])
def test_bad_values(value, model_class):
    """One line, before the backbone is made."""
    with pytest.raises(ValueError, match=r"min_images=.* must be ") as caught:
        model_class(backbone="no such backbone", min_images=value)
    message = str(caught.value)
    assert message == bad_input(caught.value)
    assert message.startswith(f"min_images={value!r} must be 'auto', a number of images of at least 1, or a share of ")
    assert "\n" not in message
