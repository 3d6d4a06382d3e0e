# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Thresholds without labels, scores that are not clipped, and metrics that cannot be computed."""

import logging
import shutil

import numpy as np
import pytest
import torch
from anomalib.data import Folder, ImageBatch, InferenceBatch, MVTecAD
from anomalib.engine import Engine
from anomalib.post_processing import PostProcessor

from anomalib_softpatch import SoftPatch
from anomalib_softpatch.components.out_of_bag import false_alarm_threshold
from anomalib_softpatch.models.post_processor import LabelFreePostProcessor, ThresholdBetweenScores

SMALL = {
    "backbone": "test_resnet", "layers": ["layer1", "layer2"], "pre_trained": False, "coreset_sampling_ratio": 0.02,
    "visualizer": False, "noise_report": False,
}  # fmt: skip


def engine(folder):
    return Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, logger=False)


def model(**options):
    return SoftPatch(**SMALL, pre_processor=SoftPatch.configure_pre_processor((64, 64)), **options)


@pytest.fixture
def unlabeled(mvtec_root):
    return Folder(name="set", root=mvtec_root / "bottle", normal_dir="train/good", num_workers=0)


@pytest.fixture
def labeled(mvtec_root):
    return MVTecAD(root=mvtec_root, category="bottle", num_workers=0)


def test_threshold_of_training_images(unlabeled, tmp_path, caplog):
    trained, runner = model(), engine(tmp_path)
    with caplog.at_level(logging.INFO):
        runner.fit(trained, datamodule=unlabeled)
    assert "adaptive threshold will take the value of the highest" not in caplog.text
    processor, scores = trained.post_processor, trained.model.out_of_bag
    assert float(processor.image_threshold) == pytest.approx(false_alarm_threshold(scores.image_scores, 0.05))
    assert float(processor.pixel_threshold) == pytest.approx(false_alarm_threshold(scores.map_peaks, 0.05))
    # In the checkpoint, and in the results of a model loaded from it
    checkpoint = runner.trainer.checkpoint_callback.best_model_path
    loaded = SoftPatch.load_from_checkpoint(checkpoint)
    assert float(loaded.post_processor.image_threshold) == pytest.approx(float(processor.image_threshold))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = loaded.eval()(images)
        raw = loaded.model(loaded.pre_processor(images)).pred_score
    threshold = float(processor.image_threshold)
    np.testing.assert_allclose(output.pred_score, raw / (raw + threshold), rtol=1e-5)
    assert output.pred_label.tolist() == (raw > threshold).tolist()


def test_out_of_bag_scores_equal_numpy(unlabeled, tmp_path):
    """Each training image is compared with the bank without the patches that it added, by brute force in float64."""
    trained = model()
    features = {}
    fit = trained.model.fit

    def remember(*args):
        store = trained.model.feature_store
        features["all"] = store.project().double().numpy()
        fit(*args)

    trained.model.fit = remember
    engine(tmp_path).fit(trained, datamodule=unlabeled)
    everything = features["all"]
    indices = trained.model.denoising.indices.numpy()
    bank, weights = trained.model.memory_bank.double().numpy(), trained.model.weights.double().numpy()
    patches = everything.shape[1] * everything.shape[2]
    for image, actual in enumerate(trained.model.out_of_bag.image_scores.tolist()):
        others = indices // patches != image
        distances = np.linalg.norm(everything[image].reshape(patches, 1, -1) - bank[None, others], axis=2)
        expected = (distances.min(axis=1) * weights[others][distances.argmin(axis=1)]).max()
        assert actual == pytest.approx(expected, rel=1e-4)


def test_labels_count_where_there_are_some(labeled, tmp_path):
    """The verdicts are Anomalib's, with a threshold halfway between its threshold and the next lower score."""
    ours, theirs = model(), model(post_processor=PostProcessor())
    for each in (ours, theirs):
        engine(tmp_path).fit(each, datamodule=labeled)
    with torch.no_grad():
        outputs = [ours.eval().model(ours.pre_processor.transform(batch.image)) for batch in labeled.val_dataloader()]
    for kind, scores in (
        ("image_threshold", torch.cat([output.pred_score for output in outputs])),
        ("pixel_threshold", torch.cat([output.anomaly_map.flatten() for output in outputs])),
    ):
        highest_normal = scores[scores < getattr(theirs.post_processor, kind)].max()
        expected = (float(getattr(theirs.post_processor, kind)) + float(highest_normal)) / 2
        assert float(getattr(ours.post_processor, kind)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.5),
        ([0.1, 0.8, 0.8, 0.9], [0, 1, 1, 1], 0.45),  # copies of a defect
        ([0.4, 0.8], [1, 1], 0.2),  # nothing is lower than the lowest defect
        ([0.1, 0.2], [0, 0], 0.2),  # no defects: no image is above the threshold
        ([0.3, 0.3, 0.3], [0, 1, 1], 0.15),  # nothing distinguishes them
    ],
)
def test_thresholds_lie_between_scores(scores, labels, expected):
    """Whatever another runtime makes of a score's last digits, its verdict is the same."""
    metric = ThresholdBetweenScores(fields=["pred_score", "gt_label"])
    metric.update(
        ImageBatch(
            image=torch.zeros(len(scores), 3, 8, 8), pred_score=torch.tensor(scores), gt_label=torch.tensor(labels)
        )
    )
    assert float(metric.compute()) == pytest.approx(expected)


def test_without_validation(unlabeled, tmp_path):
    trained = model()
    runner = Engine(
        default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, logger=False, limit_val_batches=0
    )
    runner.fit(trained, datamodule=unlabeled)
    expected = false_alarm_threshold(trained.model.out_of_bag.image_scores, 0.05)
    assert float(trained.post_processor.image_threshold) == pytest.approx(expected)


def test_ways_to_say_how_strict(unlabeled, labeled, tmp_path):
    share = model(post_processor=LabelFreePostProcessor(expected_defects=0.25))
    engine(tmp_path).fit(share, datamodule=unlabeled)
    scores, threshold = share.model.out_of_bag.image_scores, share.post_processor.image_threshold
    assert (scores > threshold).float().mean() == pytest.approx(0.25, abs=0.15)
    assert not torch.isclose(scores, threshold, rtol=1e-6).any()
    fixed = model(post_processor=LabelFreePostProcessor(fixed_threshold=7.5))
    engine(tmp_path).fit(fixed, datamodule=labeled)
    assert float(fixed.post_processor.image_threshold) == float(fixed.post_processor.pixel_threshold) == 7.5
    loaded = LabelFreePostProcessor()
    loaded.load_checkpoint_config(fixed.post_processor.checkpoint_config())
    assert loaded.fixed_threshold == 7.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"false_alarms": 0.0}, "false_alarms=0.0 must be a share above 0 and below 1"),
        ({"expected_defects": 1.5}, "expected_defects=1.5 must be a share"),
        ({"fixed_threshold": -1.0}, "fixed_threshold=-1.0 must be at least 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LabelFreePostProcessor(**options)


def test_scores_keep_their_order():
    """Even far above the threshold, where Anomalib's scores are clipped at those of the validation."""
    processor = LabelFreePostProcessor()
    processor._image_threshold.fill_(2.0)
    scores = torch.tensor([0.0, 1.0, 2.0, 20.0, 200.0])
    output = processor(InferenceBatch(pred_score=scores, anomaly_map=scores.view(5, 1, 1, 1)))
    assert output.pred_score.tolist() == pytest.approx([0, 1 / 3, 0.5, 20 / 22, 200 / 202])
    assert output.pred_label.tolist() == [False, False, False, True, True]
    processor._image_threshold.fill_(0.0)  # equal training images
    output = processor(InferenceBatch(pred_score=scores, anomaly_map=scores.view(5, 1, 1, 1)))
    assert output.pred_label.tolist() == [False, True, True, True, True]


def test_a_run_without_labels_names_what_it_cannot_compute(unlabeled, tmp_path, caplog):
    trained, runner = model(), engine(tmp_path)
    runner.fit(trained, datamodule=unlabeled)
    with caplog.at_level(logging.WARNING):
        results = runner.test(trained, datamodule=unlabeled, verbose=False)
    assert not any("AUROC" in name for name in results[0])
    assert "image_AUROC, image_F1Score cannot be computed: no test images are labeled anomalous" in caplog.text


def test_a_run_with_labels_computes_all(labeled, tmp_path, caplog):
    trained, runner = model(), engine(tmp_path)
    runner.fit(trained, datamodule=labeled)
    results = runner.test(trained, datamodule=labeled, verbose=False)
    assert {"image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"} <= results[0].keys()
    assert "cannot be computed" not in caplog.text


def test_a_single_training_image_leaves_anomalibs_threshold(mvtec_root, tmp_path):
    """There is no other image to score it against, so the threshold is the highest normal validation score."""
    root = tmp_path / "set" / "good"
    root.mkdir(parents=True)
    shutil.copy(mvtec_root / "bottle" / "train" / "good" / "000.png", root)
    single = Folder(
        name="set", root=root.parent, normal_dir="good", normal_test_dir=mvtec_root / "bottle" / "test" / "good",
        val_split_mode="same_as_test", num_workers=0,
    )  # fmt: skip
    trained = model(threshold=0, soft_weight=False)
    engine(tmp_path).fit(trained, datamodule=single)
    assert not trained.model.out_of_bag.image_scores.isfinite().any()
    assert trained.post_processor.image_threshold.isfinite()


def test_a_loaded_model_keeps_its_threshold(unlabeled, tmp_path):
    trained, runner = model(), engine(tmp_path)
    runner.fit(trained, datamodule=unlabeled)
    loaded = SoftPatch.load_from_checkpoint(runner.trainer.checkpoint_callback.best_model_path)
    engine(tmp_path).validate(loaded, datamodule=unlabeled, verbose=False)
    assert float(loaded.post_processor.image_threshold) == float(trained.post_processor.image_threshold)


def test_a_fit_ends_with_its_self_check(unlabeled, labeled, tmp_path, caplog):
    """It is in the log and on the page. With labels, there is no requested share of false alarms."""
    trained = model()
    trained.noise_report = True
    with caplog.at_level(logging.INFO):
        engine(tmp_path / "unlabeled").fit(trained, datamodule=unlabeled)
    check = trained.self_check()
    assert (check.verdict, check.asked) == ("do not use it", 0.05)
    assert check.facts.images == len(trained.model.denoising.keys)  # Folder holds some back
    assert check.threshold == float(trained.post_processor.image_threshold)
    assert check.scale == 1
    (page,) = (tmp_path / "unlabeled").rglob("report.html")
    for line in check.lines:
        assert line in caplog.text
        assert page.read_text().count(line) == 1
    engine(tmp_path / "labeled").fit(trained, datamodule=labeled)
    assert (trained.self_check().verdict, trained.self_check().asked) == ("trust it", None)
    assert model().self_check() is None


@pytest.mark.parametrize(("known", "between"), [(0, (80, 81)), (5, (84, 85)), (10, (89, 89)), (30, (89, 89))])
def test_known_defects_are_not_expected_again(known, between):
    """Of 90 images and some known defects, a share of all is expected to be defective."""
    scores = torch.arange(90.0)[torch.randperm(90, generator=torch.Generator().manual_seed(0))]
    low, high = between
    assert low <= LabelFreePostProcessor(expected_defects=0.1).cut(scores, known_defects=known) <= high
