# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-softpatch predict``: verdicts about images, from a checkpoint or an exported file.

Torch is imported only for a checkpoint, and after all arguments that can be checked without it have been checked.
"""

import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from anomalib_softpatch.images.appearance import Appearance, appearance, mean_colors
from anomalib_softpatch.images.finding import LINKED_FOLDER, check_folder, find_images
from anomalib_softpatch.images.reading import UnreadableImageError, read_image
from anomalib_softpatch.options import FALSE_ALARMS, check
from anomalib_softpatch.predictions.page_files import page_files
from anomalib_softpatch.predictions.predictor import Predictor, load_exported
from anomalib_softpatch.predictions.runtimes import check_exported
from anomalib_softpatch.predictions.table import (
    UNREADABLE,
    Prediction,
    fingerprint,
    peak,
    read_predictions,
    summary,
    time_of_change,
    verdict,
)
from anomalib_softpatch.predictions.training import TrainingFacts
from anomalib_softpatch.scoring.arrivals import Arrivals
from anomalib_softpatch.scoring.decided import Decided, about, read_decided
from anomalib_softpatch.scoring.log import PredictionLog
from anomalib_softpatch.text import counted, first_line, shown

if TYPE_CHECKING:
    from anomalib_softpatch.predictions.page import PredictionPage

SOME_UNREADABLE = 3  # exit status if some images could not be scored
INTERRUPTED = 130
PAUSE = 0.5  # seconds between two listings of a watched folder
WATCHED = 100  # number of the last images of a watched folder that are compared with the training images


def predict(
    images: Path,
    ckpt_path: Path | None = None,
    model: Path | None = None,
    output: Path = Path("predictions.csv"),
    device: str = "auto",
    watch: bool = False,
    page: bool = False,
    heartbeat: float = 60,
    decisions: Path | None = None,
    false_alarms: float = FALSE_ALARMS,
) -> None:
    """Report whether each image is anomalous, how anomalous it is, and where it is most anomalous.

    Backbone, layers, image size and threshold come from the checkpoint or the exported file. For each image, the
    command prints a line and writes a row to predictions.csv at once: path, score, threshold, verdict, x and y of the
    highest pixel, reason, time of the file's last change, and the model's fingerprint. If it is stopped, the same
    command continues where it stopped. Rows are never changed or removed; the last row of an image counts.

    A file that cannot be read also gets a row, with the verdict unreadable and the reason. Exit status: 0 if all images
    have been scored, 3 if some could not be scored, 2 for bad input.

    Args:
        images: Folder of images, or one image.
        ckpt_path: Checkpoint of SoftPatch or SoftPatchPlus that anomalib train wrote (model.ckpt).
        model: Exported model (.onnx or .xml) instead of a checkpoint.
        output: CSV file to write to, a new one or that of an earlier run with the same model.
        device: Device for a checkpoint, for example cpu or cuda; auto for a GPU if there is one.
        watch: Score images as they arrive in the folder, each when it has not changed for a second, until the command
            is stopped with Ctrl-C or a signal to terminate.
        page: Also write a page with the name of the output (predictions.html). It shows all images of the table with
            their heat maps, to decide which verdicts are wrong. anomalib-softpatch teach takes these decisions.
        heartbeat: With watch, seconds between two lines that report the progress.
        decisions: File of decisions about images of the folder (decisions.csv). From it, the command computes at the
            end how many of all good images are called anomalous at most, and how many of all defects are found at
            least. Images that the model was trained on do not count.
        false_alarms: With decisions, share of good images that may be called anomalous. If the decided images do not
            ensure it, the command reports how many more good images that takes.
    """
    file = _model_file(ckpt_path, model)
    if watch:
        _check_watch(images, page, decisions)
    if not heartbeat > 0:
        msg = f"heartbeat={heartbeat} must be a number of seconds above 0."
        raise ValueError(msg)
    check(false_alarms=false_alarms)
    paths, folders, others = ([], [], []) if watch else _found(images)
    decided = None if decisions is None else read_decided(decisions, paths, file)
    name = fingerprint(file)
    if page:
        page_files(output)  # refuses names that are taken
    with PredictionLog(output, name) as log, _terminated_as_interrupted():
        run = Run(log, file, name, device, exported=ckpt_path is None, page=page)
        try:
            if watch:
                run.watch(images, heartbeat)
            else:
                run.score([*paths, *folders])
        except KeyboardInterrupt:
            if not watch:  # an interruption is how watching ends
                sys.stderr.write(f"\nStopped. The same command continues from here; {output} has all results so far.\n")
                raise SystemExit(INTERRUPTED) from None
        verdicts = {path: (row.verdict, row.score) for path, row in log.predictions(paths).items()}
    suffixes = ", ".join(sorted({path.suffix or "none" for path in others}))
    left_out = f", {counted(len(others), 'file')} with another extension left out ({suffixes})" if others else ""
    sys.stdout.write(f"{summary(run.verdicts)}{left_out}: {output}\n")
    if verdicts:
        sys.stdout.writelines(f"{line}\n" for line in _remarks(run, verdicts, decided, false_alarms))
    if watch and run.scored:
        sys.stdout.writelines(f"{line}\n" for line in run.news())
    if run.verdicts[UNREADABLE]:
        raise SystemExit(SOME_UNREADABLE)


def _model_file(ckpt_path: Path | None, model: Path | None) -> Path:
    """Return the model's file, and refuse options that do not name exactly one, without loading it."""
    if (ckpt_path is None) == (model is None):
        msg = "Give either ckpt_path (a checkpoint) or model (an exported .onnx or .xml file)."
        raise ValueError(msg)
    file = ckpt_path or model
    if file is None or not file.is_file():
        msg = f"{file} is not a file."
        raise FileNotFoundError(msg)
    if model is not None:
        check_exported(model)
    return file


def _check_watch(images: Path, page: bool, decisions: Path | None) -> None:
    """Refuse options that a watched folder does not support."""
    if page:
        msg = "A watched folder has no page. Leave out page, or watch."
        raise ValueError(msg)
    if decisions is not None:
        msg = "decisions need a folder that is scored once. Leave out watch."
        raise ValueError(msg)
    check_folder(images)


def _found(images: Path) -> tuple[list[str], list[str], list[Path]]:
    """Return the images of a folder, or the one image, and the folders and other files in it that are skipped."""
    if images.is_file():
        return [str(images)], [], []
    paths, skipped = find_images(images)
    folders = [path for path, _ in skipped if Path(path).is_dir()]
    return [str(path) for path in paths], folders, [Path(path) for path, _ in skipped if not Path(path).is_dir()]


def _remarks(
    run: "Run", verdicts: Mapping[str, tuple[str, float]], decided: Decided | None, false_alarms: float
) -> list[str]:
    """Return lines about the run as a whole: differences from the training images, and limits of error rates."""
    training = run.training
    scores = [score for word, score in verdicts.values() if word != UNREADABLE]
    lines = list(training.remarks(scores, [image for image, _ in run.scored]).values())
    return lines if decided is None else [*lines, *about(decided.without(training.names), verdicts, false_alarms)]


class Run:
    """Scores images with a model, which is loaded for the first image, and prints and stores the verdicts.

    Attributes:
        scored: Appearances and scores of the images that this run has scored; of a watched folder, only of the last
            :data:`WATCHED`.
    """

    def __init__(
        self, log: PredictionLog, file: Path, name: str, device: str, exported: bool, page: bool = False
    ) -> None:
        self.log = log
        self.verdicts: Counter[str] = Counter()
        self.scored: deque[tuple[Appearance, float]] = deque()
        self._file = file
        self._name = name
        self._device = device
        self._exported = exported
        self._has_page = page
        self._model: Predictor | None = None
        self._reported: set[str] = set()

    @property
    def training(self) -> TrainingFacts:
        """Facts about the training images, stored in the model."""
        return self._load().training

    @cached_property
    def _page(self) -> "PredictionPage | None":
        """The page, imported when there is something to draw, since that takes seconds."""
        if not self._has_page:
            return None
        from anomalib_softpatch.predictions.page import PredictionPage  # noqa: PLC0415  # imports torch

        return PredictionPage(self.log.path)

    def score(self, paths: Sequence[str]) -> None:
        """Score images and write the page. Images that already have a row are only counted."""
        earlier = self._earlier(paths)
        if earlier:
            sys.stdout.write(f"{counted(len(earlier), 'image')} of {len(paths)} already scored by an earlier run.\n")
        for path in paths:
            if path in earlier and earlier[path].verdict != UNREADABLE:
                self.verdicts[earlier[path].verdict] += 1
            else:
                prediction, image = self._judge(path)
                self._tell(prediction, image, earlier)
        if self._page is not None:
            self._write(self._page)

    def watch(self, folder: Path, heartbeat: float) -> None:
        """Score images as they arrive until interrupted; every ``heartbeat`` seconds, report the progress."""
        self._load()  # a wrong model is refused at once, and the first image does not have to wait
        self.scored = deque(maxlen=WATCHED)
        arrivals = Arrivals(folder)
        earlier: dict[str, Prediction] | None = None
        beat = time.monotonic()
        sys.stdout.write(f"Watching {shown(folder)}. Ctrl-C ends it.\n")
        sys.stdout.flush()
        while True:
            complete = arrivals.complete(time.monotonic())
            if earlier is None and complete:
                earlier = self._earlier([str(path) for path in complete])
            for path in complete:
                assert earlier is not None
                row = earlier.get(str(path))
                if row is None or row.verdict == UNREADABLE:
                    prediction, image = self._judge(str(path))
                    if prediction.verdict == UNREADABLE and not arrivals.given_up(path, time.monotonic()):
                        continue
                    self._tell(prediction, image, earlier)
                earlier.pop(str(path), None)
                arrivals.done(path)
                beat = self._beat(folder, arrivals, beat, heartbeat)
            beat = self._beat(folder, arrivals, beat, heartbeat)
            time.sleep(PAUSE)

    def _beat(self, folder: Path, arrivals: Arrivals, last: float, heartbeat: float) -> float:
        """Report the progress if it is time for that, and return the time of the last report."""
        if time.monotonic() - last < heartbeat:
            return last
        waiting = f", {counted(arrivals.waiting, 'file')} not complete yet" if arrivals.waiting else ""
        trouble = f"; {arrivals.trouble}" if arrivals.trouble else ""
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        sys.stdout.write(f"{now} watching {shown(folder)}: {summary(self.verdicts)}{waiting}{trouble}\n")
        sys.stdout.writelines(f"{line}\n" for line in self.news())
        sys.stdout.flush()
        return time.monotonic()

    def news(self) -> list[str]:
        """Return a line for each new difference of the last images from the training images."""
        remarks = self.training.remarks([score for _, score in self.scored], [image for image, _ in self.scored])
        lines = [line for name, line in remarks.items() if name not in self._reported]
        self._reported = set(remarks)
        return lines

    def _earlier(self, paths: Sequence[str]) -> dict[str, Prediction]:
        """Return the predictions of earlier runs for files that have not changed since."""
        rows = self.log.predictions(paths)
        return {path: row for path, row in rows.items() if row.modified == time_of_change(path)}

    def _load(self) -> Predictor:
        if self._model is None and self._exported:
            self._model = load_exported(self._file)
        elif self._model is None:
            from anomalib_softpatch.scoring.checkpoint import load_checkpoint  # noqa: PLC0415  # imports torch

            self._model = load_checkpoint(self._file, self._device)
        return self._model

    def _judge(self, path: str) -> tuple[Prediction, Appearance | None]:
        """Return the prediction for a file, also if it is unreadable, and how the image looks if it could be scored."""
        modified = time_of_change(path)

        def unreadable(reason: str) -> tuple[Prediction, None]:
            nan = float("nan")
            return Prediction(path, nan, nan, UNREADABLE, None, None, reason, modified, self._name), None

        if Path(path).is_dir():
            return unreadable(LINKED_FOLDER if Path(path).is_symlink() else "folder cannot be read")
        predictor = self._load()
        try:
            image, _ = read_image(path, predictor.largest_value)
        except UnreadableImageError as error:
            return unreadable(str(error))
        try:
            output = predictor.run(image[None])
        except Exception as error:  # one image must not keep the others from being scored
            return unreadable(f"cannot be scored: {first_line(error)}")
        word = verdict(output.score, predictor.threshold, output.label)
        if word == UNREADABLE:
            return unreadable("its score is NaN")
        x, y = peak(output.anomaly_map, (image.shape[2], image.shape[1]), predictor.transform)
        prediction = Prediction(path, output.score, predictor.threshold, word, x, y, "", modified, self._name)
        if self._page is not None:
            self._page.draw(prediction, output.anomaly_map, predictor)
        try:
            return prediction, appearance(path, mean_colors(image))
        except OSError:  # removed since it was scored
            return prediction, None

    def _write(self, page: "PredictionPage") -> None:
        """Write the page of all images in the table, and draw those that no run has drawn yet."""
        predictions = read_predictions(self.log.path)
        for each in predictions:
            current = each.verdict != UNREADABLE and each.modified == time_of_change(each.path)
            if current and not page.is_drawn(each):
                self._judge(each.path)
        page.write(predictions, self._file, self._exported, self._load().largest_value)
        sys.stdout.write(f"Page: {page.path}\n")

    def _tell(self, prediction: Prediction, image: Appearance | None, earlier: Mapping[str, Prediction]) -> None:
        """Print and count a prediction, note how the image looks, and write a row unless an earlier run wrote it."""
        if image is not None:
            self.scored.append((image, prediction.score))
        row = earlier.get(prediction.path)
        if row is None or (row.verdict, row.modified) != (prediction.verdict, prediction.modified):
            self.log.append(prediction)
        self.verdicts[prediction.verdict] += 1
        sys.stdout.write(f"{prediction.line()}\n")
        sys.stdout.flush()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Make a signal to terminate, with which services are stopped, act like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
