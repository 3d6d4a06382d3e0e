# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The page of a prediction run: its files, and its use in a real browser."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from anomalib_softpatch.images.decisions import Box, Decision, read_decisions
from anomalib_softpatch.predictions import page as page_module
from anomalib_softpatch.scoring.command import predict
from browser import drive, layout
from conftest import COMMAND
from samples import OUTPUTS, read_rows, save_brightness_model, save_dark_image

# The score of an image is its brightest value, and the threshold is 127.5: see save_brightness_model
VALUES = {"far.png": 250, "near, 1.png": 130, "under.png": 120, "dark.png": 20, "tiff.tif": 200}


DRAWINGS = "*[!y].jpg"  # without the differences from copies, ..._copy.jpg


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_brightness_model(tmp_path_factory.mktemp("model") / "model.onnx", OUTPUTS)


@pytest.fixture(scope="module")
def page(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for name, brightest in VALUES.items():
        save_dark_image(folder / "images" / name, brightest)
    predict(folder / "images", model=model, output=folder / "predictions.csv", page=True)
    return folder / "predictions.html"


def saved(page: Path, script: str, run_browser: Callable[..., str], folder: Path) -> list[Decision]:
    """Return the decisions that the page saves after a script."""
    end = 'URL.createObjectURL = (blob) => { blob.text().then(result); return "#"; }; click("#download");'
    text = drive(page, f"(async () => {{ {script} {end} }})();", run_browser)
    (folder / "decisions.csv").write_text(text, encoding="utf-8")
    return read_decisions(folder / "decisions.csv")


def test_what_to_look_at_next_comes_first(page: Path, run_browser: Callable[..., str]) -> None:
    names, buttons, line = drive(
        page,
        """
        const words = (one) => [...one.querySelectorAll("button.verdict")].map((button) => button.textContent);
        result([visible(), [...document.querySelectorAll("figure")].slice(0, 2).map(words),
                document.querySelector("p.needs-script").textContent]);
        """,
        run_browser,
    )
    # One image on either side of the threshold, the nearer one first, then the others by score
    assert names == ["near, 1.png", "under.png", "far.png", "tiff.tif", "dark.png"]
    assert buttons == [["False alarm", "Confirm", "Set aside"], ["Confirm", "Missed defect", "Set aside"]]
    assert line.startswith("5 images: decide about the first 2")
    assert line.endswith("anomalib-softpatch teach model.ckpt --decisions decisions.csv")


def test_keys_decide_and_only_decisions_are_saved(page: Path, run_browser: Callable[..., str], tmp_path: Path) -> None:
    decisions = saved(page, 'press("ArrowRight"); press("k"); press("x"); press("d");', run_browser, tmp_path)
    images = page.parent / "images"
    assert decisions == [
        Decision(images / "near, 1.png", "normal"),
        Decision(images / "under.png", "defect"),
        Decision(images / "far.png", "set_aside"),
    ]


# Draws a box between two points of an image of 30 by 20 pixels, which fills its element as far as its shape allows
DRAW = """
    const viewer = document.getElementById("viewer");
    const draw = (element, left, top, scale, from, to) => {
      const send = (type, [x, y]) => element.dispatchEvent(new PointerEvent(type, {
        bubbles: true, cancelable: true, clientX: left + x * scale, clientY: top + y * scale }));
      send("pointerdown", from); send("pointermove", to); send("pointerup", to);
    };
    const drawOnOriginal = async (from, to) => {
      const element = viewer.querySelector(".original");
      await element.decode();
      const {left, top, width, height} = element.getBoundingClientRect();
      const scale = Math.min(width / 30, height / 20);
      draw(element, left + (width - 30 * scale) / 2, top + (height - 20 * scale) / 2, scale, from, to);
    };
"""


def test_a_box_is_the_region_of_a_defect(page: Path, run_browser: Callable[..., str], tmp_path: Path) -> None:
    """A box can be drawn in any direction. The part outside of the image is cut off."""
    script = """
        press("ArrowRight"); press("ArrowRight"); press("Enter");
        await drawOnOriginal([20.5, 12.5], [5.5, 4.5]);
        press("ArrowRight");
        await drawOnOriginal([25.5, 15.5], [40, 30]);
        press("ArrowRight"); press("ArrowRight");
    """
    decisions = saved(page, DRAW + script, run_browser, tmp_path)
    images = page.parent / "images"
    assert decisions == [
        Decision(images / "under.png", "defect", Box(5, 4, 16, 9)),
        Decision(images / "far.png", "defect", Box(25, 15, 5, 5)),
    ]


def test_a_box_on_an_image_that_browsers_do_not_show(
    page: Path, run_browser: Callable[..., str], tmp_path: Path
) -> None:
    """The box is drawn on the left half of the thumbnail, which has 456 by 224 pixels."""
    script = """
        const refused = new Promise((done) => viewer.querySelector(".original").addEventListener("error", done));
        click("#image-4 a.larger");
        const drawing = viewer.querySelector(".drawing");
        await refused;
        await drawing.decode();
        const {left, top, width, height} = drawing.getBoundingClientRect();
        const scale = Math.min(width / 456, height / 224);
        const corner = [left + (width - 456 * scale) / 2, top + (height - 224 * scale) / 2 + 37 * scale];
        draw(drawing, ...corner, scale * 224 / 30, [10.5, 5.5], [14.5, 9.5]);
    """
    decisions = saved(page, DRAW + script, run_browser, tmp_path)
    assert decisions == [Decision(page.parent / "images" / "tiff.tif", "defect", Box(10, 5, 5, 5))]


def test_a_region_is_written_with_the_keyboard(page: Path, run_browser: Callable[..., str], tmp_path: Path) -> None:
    script = """
        const type = (text) => {
          press("r");
          document.activeElement.value = text;
          document.activeElement.dispatchEvent(new Event("change", {bubbles: true}));
        };
        press("ArrowRight"); type("1 2 3 4"); press("ArrowRight");
        type("1 2 30 4"); document.activeElement.blur(); press("ArrowRight");  // beyond the edge: refused
        type("5 6 7 8"); press("u"); type("1 1 9 9"); type("0 0 30 20"); press("ArrowRight");
        type("1 2 3 4"); type(""); press("k");
    """
    decisions = saved(page, script, run_browser, tmp_path)
    images = page.parent / "images"
    assert decisions == [
        Decision(images / "near, 1.png", "defect", Box(1, 2, 3, 4)),
        Decision(images / "far.png", "defect", Box(0, 0, 30, 20)),
        Decision(images / "tiff.tif", "normal"),
    ]


@pytest.mark.parametrize("width", [1280, 400])
def test_page_fits_its_window(page: Path, run_browser: Callable[..., str], width: int) -> None:
    assert layout(page, width, run_browser) == [width, width, len(VALUES), True]


def test_a_later_run_has_the_page_of_all_images(model: Path, tmp_path: Path) -> None:
    """The page includes images of a run without a page, and names those that were removed."""
    images = tmp_path / "images"
    for name in ("a.png", "b.png", "gone.png"):
        save_dark_image(images / name, 200)
    predict(images, model=model, output=tmp_path / "out.csv")
    save_dark_image(images / "c.png", 10)
    (images / "gone.png").unlink()
    predict(images, model=model, output=tmp_path / "out.csv", page=True)
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert [name for name in ("a.png", "b.png", "c.png") if f'data-name="{name}"' in text] == [
        "a.png",
        "b.png",
        "c.png",
    ]
    assert 'data-name="gone.png"' not in text
    assert text.count("was removed or has changed") == 1
    assert len(read_rows(tmp_path / "out.csv")) == 4  # drawing adds no rows
    drawings = set((tmp_path / "out_thumbnails").glob(DRAWINGS))
    assert len(drawings) == 3
    with Image.open(min(drawings)) as image:
        assert image.size == (456, 224)
    save_dark_image(images / "a.png", 90)
    predict(images, model=model, output=tmp_path / "out.csv", page=True)
    assert len(set((tmp_path / "out_thumbnails").glob(DRAWINGS)) - drawings) == 1  # the drawing of the new content
    assert len(list((tmp_path / "out_thumbnails").glob(DRAWINGS))) == 3


def test_a_failed_run_leaves_the_earlier_page(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    save_dark_image(tmp_path / "images" / "a.png", 200)
    predict(tmp_path / "images", model=model, output=tmp_path / "out.csv", page=True)
    page = (tmp_path / "out.html").read_bytes()
    drawings = set((tmp_path / "out_thumbnails").iterdir())
    save_dark_image(tmp_path / "images" / "a.png", 100)
    monkeypatch.setattr(page_module, "duplicate_groups", fail)
    with pytest.raises(OSError, match="No space left"):
        predict(tmp_path / "images", model=model, output=tmp_path / "out.csv", page=True)
    assert (tmp_path / "out.html").read_bytes() == page
    assert drawings <= set((tmp_path / "out_thumbnails").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--watch"], "A watched folder has no page. Leave out page, or watch."),
        (["--output", "mine.csv"], "'mine.html' is where the page would be and is not a page of predictions."),
        (["--output", "out.html"], "'out.html' is where the page would be and is not a page of predictions."),
    ],
)
def test_bad_options_are_refused_in_one_line(
    options: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    run_forked: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    save_dark_image(tmp_path / "images" / "a.png", 200)
    (tmp_path / "mine.html").write_text("my own page")
    command = ("-c", COMMAND, "predict", "images", "--model", model, "--page", *options)
    result = run_forked(*command, cwd=tmp_path, timeout=120, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert (tmp_path / "mine.html").read_text() == "my own page"
    assert not (tmp_path / "out.html").exists()


def test_copies_are_shown_with_their_difference(model: Path, tmp_path: Path) -> None:
    """A later run shows it, too, but not after one of the copies was removed."""
    images, output = tmp_path / "images", tmp_path / "out.csv"
    for name, brightest in (("one.png", 200), ("other.png", 90), ("same.png", 200)):
        save_dark_image(images / name, brightest)
    for _ in range(2):
        predict(images, model=model, output=output, page=True)
        text = output.with_suffix(".html").read_text(encoding="utf-8")
        assert text.count("Difference from a copy") == 2
        assert "Left: the copy same.png. Right: the difference, which is zero." in text
        drawings = list((tmp_path / "out_thumbnails").glob("*_copy.jpg"))
        assert len(drawings) == 2
        assert all(f"out_thumbnails/{drawing.name}" in text for drawing in drawings)
    (images / "same.png").unlink()
    predict(images, model=model, output=output, page=True)
    assert "Difference from a copy" not in output.with_suffix(".html").read_text(encoding="utf-8")
    assert not list((tmp_path / "out_thumbnails").glob("*_copy.jpg"))
