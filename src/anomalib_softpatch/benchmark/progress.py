# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Progress and log messages of a benchmark."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column


class RunProgress(Progress):
    """Progress bar with the current runs, and a line for each finished run."""

    def __init__(self, console: Console, total: int) -> None:
        names = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
        columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), names)
        super().__init__(*columns, console=console, expand=True, redirect_stdout=False, redirect_stderr=False)
        self.total = total
        self.ended = 0
        self._current: list[str] = []
        self._bar = self.add_task("", total=total)

    def begin(self, name: str) -> None:
        """Show that a run has begun."""
        self._current.append(name)
        self.update(self._bar, description=escape("; ".join(self._current)))

    def end(self, name: str, outcome: str) -> None:
        """Show that a run has ended, with its results or the reason of its failure."""
        self.ended += 1
        self._current.remove(name)
        line = f"{self.ended}/{self.total} {name}: {outcome}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self.update(self._bar, description=escape("; ".join(self._current)), advance=1)


@contextmanager
def log_to_file_only(path: Path) -> Iterator[None]:
    """Append all log messages and warnings to a file, because they would tear the progress bar on the terminal.

    Anomalib's ``redirect_logs`` keeps the handlers of the root logger, writes a message once per parent logger, and
    cannot be undone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    root, *others = loggers = [logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)]
    before = [(each, each.handlers[:], each.propagate) for each in loggers]
    with closing(logging.FileHandler(path, encoding="utf-8")) as handler:
        handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
        root.handlers = [handler]
        for other in others:
            other.handlers = []
            other.propagate = True
        logging.captureWarnings(capture=True)
        try:
            yield
        finally:
            logging.captureWarnings(capture=False)
            for each, handlers, propagate in before:
                each.handlers, each.propagate = handlers, propagate
