# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Teaching from the command line: a fit, decisions, a taught checkpoint, its export, and undoing it all."""

import contextlib
import csv
import hashlib
import io
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from anomalib_softpatch.cli import main
from anomalib_softpatch.images.appearance import Appearance
from anomalib_softpatch.models import load_model
from anomalib_softpatch.models.teaching import training_facts
from anomalib_softpatch.scoring.command import Run
from anomalib_softpatch.scoring.log import PredictionLog
from conftest import COMMAND, save
from samples import save_random_weights

SIZE = 96
IGNORED = 32  # number of rows at the top, where some images have spots


def draw(seed, variant=False, spot=None):
    """Draw a striped part. The rare variant has other stripes, and a defect is a spot."""
    rng = np.random.default_rng(seed)
    columns = np.arange(SIZE)
    stripes = (columns // 8 % 2 * 80)[None] if not variant else (columns // 4 % 2 * 80)[:, None]
    pixels = (100 + stripes + rng.normal(0, 6, (SIZE, SIZE))).clip(0, 255).astype(np.uint8)
    pixels = np.repeat(pixels[..., None], 3, axis=2)
    if spot is not None:
        x, y = spot
        pixels[y : y + 14, x : x + 14] = (250, 20, 20)
    return pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teach")
    for number in range(16):
        save(draw(number), folder / "train" / f"good{number:02}.png")
    save(draw(50, variant=True), folder / "train" / "variant.png")
    save(draw(60, spot=(40, 30)), folder / "train" / "spot.png")
    for number in range(6):
        save(draw(100 + number), folder / "new" / f"good{number}.png")
        save(draw(120 + number, variant=True), folder / "new" / f"variant{number}.png")
        save(draw(140 + number, spot=(20 + 6 * number, 50)), folder / "new" / f"spot{number}.png")
        save(draw(160 + number, spot=(20 + 6 * number, 5)), folder / "new" / f"edge{number}.png")
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    save(mask, folder / "black.png")
    mask[:IGNORED] = 255
    save(mask, folder / "mask.png")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """Function that runs our command in this process and returns what it prints; other fixtures start another one."""

    def run(*arguments):
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.chdir(folder)
            main([*map(str, arguments)])
        return printed.getvalue()

    return run


@pytest.fixture(scope="module")
def checkpoint(folder, run):
    backbone = ("--backbone", save_random_weights(folder / "weights", "resnet18"), "--layers", "[layer1, layer2]")
    run("clean-train", "train", "--output", "run", "--export", "none", "--image_size", SIZE, *backbone)
    return folder / "run" / "model.ckpt"


def decide(folder, name, decisions):
    path = folder / name
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "verdict", "region"], *decisions])
    return path


@pytest.fixture(scope="module")
def taught(folder, checkpoint, run_forked):
    before = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    decisions = decide(
        folder, "decisions.csv", [["train/variant.png", "normal", ""], ["train/spot.png", "defect", "40 30 14 14"],
                                  ["new/variant0.png", "false_alarm", ""], ["new/variant1.png", "false_alarm", ""]],
    )  # fmt: skip
    options = ("--decisions", decisions, "--ignore", "mask.png")
    command = ("teach", checkpoint, *options, "--output", "taught.ckpt", "--export", "openvino")
    printed = run_forked("-c", COMMAND, *command, cwd=folder).stdout
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() == before
    return printed, folder / "taught.ckpt", folder / "taught_openvino" / "model.xml"


@cache
def verdicts(run, folder, *model):
    run("predict", folder / "new", *model, "--output", f"{Path(model[1]).parent.name}{Path(model[1]).stem}.csv")
    table = pd.read_csv(folder / f"{Path(model[1]).parent.name}{Path(model[1]).stem}.csv")
    return table.set_index(table["path"].map(lambda path: Path(path).stem))


def test_the_variant_is_normal_and_defects_are_found(folder, checkpoint, taught, run):
    before, after = (verdicts(run, folder, "--ckpt_path", path) for path in (checkpoint, taught[1]))
    variants = before.index.str.startswith("variant")
    spots = before.index.str.startswith("spot")
    assert (before["verdict"][variants] == "anomalous").all()
    assert (after["verdict"][variants] == "normal").all()
    assert (after["verdict"][spots] == "anomalous").all()
    good = after.index.str.startswith("good")
    assert (after["verdict"][good] == "anomalous").sum() <= (before["verdict"][good] == "anomalous").sum()


def test_changes_are_printed(taught):
    printed, checkpoint, _ = taught
    assert "defect " in printed
    assert "-> " in printed
    assert "Taught 1 defect, 3 normal." in printed
    assert f"The taught model: {checkpoint.name}" in printed


def test_the_exported_file_gives_the_same_scores(folder, taught, run):
    _, checkpoint, exported = taught
    first, second = (verdicts(run, folder, *model) for model in (("--ckpt_path", checkpoint), ("--model", exported)))
    np.testing.assert_allclose(first["score"], second["score"], atol=1e-3)
    assert (first["verdict"] == second["verdict"]).all()


def test_decisions_taken_back_leave_no_trace(folder, checkpoint, taught, run):
    run("teach", taught[1], "--replace", "--output", "back.ckpt")
    first, second = (load_model(path).state_dict() for path in (checkpoint, folder / "back.ckpt"))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[name]) or bool(value.isnan().all()), name
    assert (
        verdicts(run, folder, "--ckpt_path", checkpoint)["score"]
        == verdicts(run, folder, "--ckpt_path", folder / "back.ckpt")["score"]
    ).all()


def test_teaching_in_steps_equals_teaching_at_once(folder, checkpoint, taught, run):
    """The steps are in another order, with a checkpoint in between."""
    first = decide(
        folder, "first.csv", [["new/variant1.png", "normal", ""], ["train/spot.png", "defect", "40 30 14 14"]]
    )
    second = decide(folder, "second.csv", [["new/variant0.png", "normal", ""], ["train/variant.png", "normal", ""]])
    run("teach", checkpoint, "--decisions", first, "--output", "one.ckpt")
    run("teach", folder / "one.ckpt", "--decisions", second, "--ignore", "mask.png", "--output", "two.ckpt")
    once, steps = (load_model(path) for path in (taught[1], folder / "two.ckpt"))
    for name in ("memory_bank", "radii", "defects", "defect_scales", "defect_threshold"):
        assert torch.equal(getattr(once.model, name), getattr(steps.model, name)), name
    assert torch.equal(once.post_processor.image_threshold, steps.post_processor.image_threshold)


def test_folders_and_undecided_rows_replace_nothing(folder, taught, run):
    """Training images are not added again."""
    rows = decide(folder, "undecided.csv", [["train/variant.png", "", ""], ["gone.png", "", ""]])
    options = ("--decisions", rows, "--add_unlabeled", "train", "--add", "new_good", "--output", "added.ckpt")
    for number in range(3):
        save(draw(200 + number), folder / "new_good" / f"{number}.png")
    save(draw(120, variant=True), folder / "new_good" / "variant.png")  # the same image was decided under another name
    printed = run("teach", taught[1], *options)
    assert "Taught 3 add." in printed
    lessons = {Path(each.path).name: each.verdict for each in load_model(folder / "added.ckpt").model.lessons}
    assert lessons == {
        "variant.png": "normal", "spot.png": "defect", "variant0.png": "normal", "variant1.png": "normal",
        "0.png": "normal", "1.png": "normal", "2.png": "normal",
    }  # fmt: skip
    # An image in a folder of good images is marked as part of it, whatever the earlier decision
    chosen_by_nobody = {
        Path(each.path).name for each in load_model(folder / "added.ckpt").model.lessons if each.of_folder
    }
    assert chosen_by_nobody == {"0.png", "1.png", "2.png", "variant0.png"}


def test_the_order_of_folders_does_not_matter(folder, checkpoint, run):
    """Images are first added unlabeled, and then as normal."""
    for number in range(2):
        save(draw(600 + number), folder / "unsure" / f"{number}.png")
    run("teach", checkpoint, "--add_unlabeled", "unsure", "--output", "unsure.ckpt")
    run("teach", folder / "unsure.ckpt", "--add", "unsure", "--output", "sure.ckpt")
    run("teach", checkpoint, "--add", "unsure", "--add_unlabeled", "unsure", "--output", "at_once.ckpt")
    first, second = (load_model(folder / name) for name in ("sure.ckpt", "at_once.ckpt"))
    assert [each.verdict for each in first.model.lessons] == ["normal", "normal"]
    for name in ("memory_bank", "radii"):
        assert torch.equal(getattr(first.model, name), getattr(second.model, name)), name
    assert torch.equal(first.post_processor.image_threshold, second.post_processor.image_threshold)


def test_good_images_stay_normal_when_as_many_are_added(folder, checkpoint, run):
    for number in range(18):
        save(draw(300 + number), folder / "many" / f"{number:02}.png")
    run("teach", checkpoint, "--add", "many", "--output", "many.ckpt")
    before, after = (verdicts(run, folder, "--ckpt_path", path) for path in (checkpoint, folder / "many.ckpt"))
    good = before.index.str.startswith("good")
    assert (after["verdict"][good] == "anomalous").sum() <= (before["verdict"][good] == "anomalous").sum() + 1
    assert (after["verdict"][after.index.str.startswith("spot")] == "anomalous").all()


def test_ignored_parts_do_not_count(folder, checkpoint, taught, run):
    """They have no effect on score and map, until the mask is taken back."""
    before, after = (verdicts(run, folder, "--ckpt_path", path) for path in (checkpoint, taught[1]))
    edges = before.index.str.startswith("edge")
    assert (before["verdict"][edges] == "anomalous").all()
    assert (after["verdict"][edges] == "normal").all()
    with torch.no_grad():
        anomaly_map = load_model(taught[1]).eval()(torch.rand(1, 3, SIZE, SIZE)).anomaly_map
    assert (anomaly_map[..., :IGNORED, :] == 0).all()
    printed = run("teach", checkpoint, "--ignore", "mask.png", "--output", "ignoring.ckpt")
    assert "Taught nothing about images." in printed
    run("teach", folder / "ignoring.ckpt", "--ignore", "black.png", "--output", "seeing.ckpt")
    again = verdicts(run, folder, "--ckpt_path", folder / "seeing.ckpt")
    assert (again["score"] == before["score"]).all()


def test_images_of_training_and_teaching_do_not_count_for_promises(folder, checkpoint, taught, run):
    """The model itself stores them, whatever its file's name; so does an exported file."""
    new = folder / "decided"
    for name in ("good0", "variant0", "spot5"):
        save(np.asarray(Image.open(folder / "new" / f"{name}.png")), new / f"{name}.png")
    (new / "variant0.png").write_bytes((folder / "new" / "variant0.png").read_bytes())
    (new / "trained.png").write_bytes((folder / "train" / "good03.png").read_bytes())
    rows = [["good0.png", "normal"], ["variant0.png", "normal"], ["spot5.png", "defect"], ["trained.png", "normal"]]
    decisions = decide(new, "decided.csv", [[*row, ""] for row in rows])
    for model in (("--ckpt_path", taught[1]), ("--model", taught[2])):
        printed = run("predict", "decided", *model, "--decisions", decisions, "--output", f"decided{model[0]}.csv")
        assert "2 decided images not counted" in printed
        assert "Good images: 0 of 1 decided are called anomalous" in printed


def test_a_folder_that_differs_as_a_whole_is_reported(folder, checkpoint, run):
    for number in range(12):
        save(draw(400 + number) // 2, folder / "dark" / f"{number:02}.png")
        save(draw(300 + number), folder / "like" / f"{number:02}.png")
    printed = run("predict", "dark", "--ckpt_path", checkpoint, "--output", "dark.csv")
    assert "These images differ as a whole from the training images" in printed
    assert "These images are darker than the training images: mean brightness 70 of 255 instead of 140 (98 %" in printed
    same = run("predict", "like", "--ckpt_path", checkpoint, "--output", "same.csv")
    assert not any(words in same for words in ("differ as a whole", "than the training images"))


def test_an_exported_file_knows_how_its_images_look_and_so_does_teaching(folder, checkpoint, taught, run):
    """After dark and small images are taught as normal, they are not reported as different any more."""
    for number in range(12):
        save(draw(500 + number)[::2, ::2] // 2, folder / "small" / f"{number:02}.png")
    printed = run("predict", "small", "--model", taught[2], "--output", "small.csv")
    assert "mean brightness 70 of 255 instead of 140" in printed
    assert "different size than the training images: 48 x 48 pixels (width x height) instead of 96 x 96" in printed
    run("teach", checkpoint, "--add", "small", "--output", "small.ckpt")
    again = run("predict", "small", "--ckpt_path", folder / "small.ckpt", "--output", "again.csv")
    assert "than the training images" not in again
    run("teach", folder / "small.ckpt", "--replace", "--output", "as_before.ckpt")
    assert training_facts(load_model(folder / "as_before.ckpt")) == training_facts(load_model(checkpoint))


def test_watching_reports_once_how_the_last_images_differ(folder, checkpoint):
    images = [Appearance(SIZE, SIZE, "gray, 8 bits", brightness) for brightness in (140.0, 70.0)]
    with PredictionLog(folder / "watched.csv", "model") as log:
        watching = Run(log, checkpoint, "model", "cpu", exported=False, page=None)
        watching.scored.extend([(images[0], 0.4)] * 30)
        assert not [line for line in watching.news() if "darker" in line]
        watching.scored.extend([(images[1], 0.4)] * 40)
        assert [line for line in watching.news() if "darker" in line]
        assert not [line for line in watching.news() if "darker" in line]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to teach"),
        (["--decisions", "absent.csv"], "absent.csv"),
        (["--decisions", "unknown.csv"], "cannot be found"),
        (["--decisions", "outside.csv"], "extends beyond its image of 96 x 96 pixels"),
        (["--decisions", "again.csv", "--output", "taught.ckpt"], "exists, and nothing is overwritten"),
        (["--forget", "forget.txt"], "cannot be found and is not known to the model"),
    ],
)
def test_bad_input(arguments, message, folder, checkpoint, taught, run_forked):
    decide(folder, "unknown.csv", [["nowhere.png", "defect", ""]])
    decide(folder, "outside.csv", [["new/spot0.png", "defect", "90 90 20 20"]])
    decide(folder, "again.csv", [["new/spot0.png", "defect", ""]])
    (folder / "forget.txt").write_text("nowhere.png\n")
    result = run_forked("-c", COMMAND, "teach", checkpoint, *arguments, cwd=folder, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
