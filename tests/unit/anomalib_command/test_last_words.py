# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The last lines of a failed command; for real command lines, see tests/end_to_end/test_careless_train.py."""

import errno
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from anomalib_softpatch.anomalib_command import last_words
from anomalib_softpatch.components.timm_backbone import check_backbone
from anomalib_softpatch.integration import engine


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Function that fails in some way and returns what the hook prints; the usual hook prints `TRACEBACK`."""

    def fail(function: Callable[[], object], *, with_model: bool = True) -> str:
        monkeypatch.setattr(engine, "Engine", SimpleNamespace(_setup_trainer=SimpleNamespace()))
        engine.Engine._setup_trainer.respects_default_devices = with_model
        monkeypatch.setattr(sys, "excepthook", lambda *_: sys.stderr.write("TRACEBACK\n"))
        last_words.register()
        try:
            function()
        except Exception:
            sys.excepthook(*sys.exc_info())
        return capsys.readouterr().err

    return fail


def test_only_the_message_of_bad_input_is_printed(printed: Callable[..., str]) -> None:
    assert printed(lambda: check_backbone("resnet1o")).startswith("anomalib: backbone='resnet1o' is not a model")


def test_other_errors_keep_their_traceback(printed: Callable[..., str]) -> None:
    def foreign() -> None:
        msg = "of somebody else"
        raise ValueError(msg)

    assert printed(foreign) == "TRACEBACK\n"
    # An error in this package's code that none of its raise statements raises is a bug
    assert printed(lambda: check_backbone(None)) == "TRACEBACK\n"


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/image.png")


def test_full_disk_is_explained_after_the_traceback(printed: Callable[..., str]) -> None:
    def wrapped() -> None:
        try:
            full_disk()
        except OSError as error:
            msg = "it failed"
            raise RuntimeError(msg) from error

    for function in (full_disk, wrapped):
        first, last = printed(function).splitlines()
        assert first == "TRACEBACK"
        assert last.startswith("anomalib: There is no space left on the disk that holds /data/image.png (No space")
        assert "--default_root_dir" in last
    assert printed(full_disk, with_model=False) == "TRACEBACK\n"
