# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""Tables and a figure of the results of ``anomalib benchmark``."""

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from anomalib_softpatch.benchmark.results import (
    ACCELERATOR,
    CURVES,
    DATA_PARTS,
    MEASURES,
    MODEL,
    MODEL_OPTIONS,
    NOISE_SHARE,
    REQUIRED,
    SEED,
)
from anomalib_softpatch.files import atomic_output


def compare(results: Path, output: Path | None = None) -> None:
    """Compare the models of a benchmark: a table per noise ratio, and a plot of AUROC against noise ratio.

    The tables are printed and written to comparison.md, the plot to comparison.png.

    Args:
        results: The results.csv that anomalib benchmark wrote, or a folder with several such files, for example after
            an interruption. If a run is in several files, the one in the last folder counts.
        output: Folder for the tables and the plot, by default that of the results.
    """
    files = sorted(results.rglob("results.csv")) if results.is_dir() else [results]
    if not files:
        msg = f"results={str(results)!r} is a folder without a results.csv. Give one that anomalib benchmark wrote to."
        raise FileNotFoundError(msg)
    runs = read_results(files)
    summary = summarize(runs)
    folder = output or (results if results.is_dir() else results.parent)
    text = to_markdown(summary, runs)
    sys.stdout.write(text)
    with atomic_output(folder / "comparison.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_output(folder / "comparison.png") as temporary:
        draw(summary, runs, temporary)
    sys.stdout.write(f"\nWritten: {folder / 'comparison.md'}, {folder / 'comparison.png'}\n")


def read_results(paths: Sequence[Path]) -> pd.DataFrame:
    """Read the runs of CSV files that ``anomalib benchmark`` wrote.

    Returns:
        One row per run with the columns ``model`` (class, with the options that differ between runs of the class),
        ``noise_ratio``, ``protocol`` (``overlap``, ``no overlap``, or empty without a noise protocol), ``dataset``,
        ``category``, ``seed``, ``noise_share`` (NaN if the file does not have it), and the measured columns of
        :data:`MEASURES`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is not one of a benchmark, or has no run.
    """
    table = pd.concat([_read_csv(Path(path)) for path in paths], ignore_index=True)
    runs = pd.DataFrame(
        {
            "model": _model_names(table),
            "noise_ratio": pd.to_numeric(_option(table, "noise_ratio")).fillna(0.0),
            "protocol": _option(table, "overlap").map({"True": "overlap", "False": "no overlap"}).fillna(""),
            "dataset": _option(table, "class_path").str.rpartition(".")[2],
            "category": _option(table, "category").fillna(_option(table, "name")).fillna(""),
            "seed": pd.to_numeric(table[SEED]),
        },
    )
    keys = list(runs.columns)
    measured = [name for name in MEASURES if name in table]
    runs[NOISE_SHARE] = pd.to_numeric(table[NOISE_SHARE]) if NOISE_SHARE in table else float("nan")
    runs[measured] = table[measured].apply(pd.to_numeric)
    return runs.drop_duplicates(keys, keep="last", ignore_index=True)


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        msg = f"results={str(path)!r} is not a file. Give the results.csv of a benchmark."
        raise FileNotFoundError(msg)
    try:
        table = pd.read_csv(path, dtype=str)  # the category "01" is not a number
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        msg = f"results={str(path)!r} cannot be read as a CSV file: {error}"
        raise ValueError(msg) from error
    missing = [name for name in REQUIRED if name not in table]
    if missing or table.empty:
        reason = f"lacks the columns {missing}" if missing else "has no runs"
        msg = f"results={str(path)!r} {reason}. Give the results.csv that anomalib benchmark wrote."
        raise ValueError(msg)
    return table


def _option(table: pd.DataFrame, name: str) -> pd.Series:
    """Return the values of a datamodule's option at any depth; the innermost (wrapped) datamodule comes first."""
    columns = [column for column in table if column.startswith(DATA_PARTS) and column.endswith(f".{name}")]
    columns.sort(key=lambda column: -column.count("."))
    values = pd.Series(None, index=table.index, dtype=object)
    for column in columns:
        values = values.where(values.notna(), table[column])
    return values


def _model_names(table: pd.DataFrame) -> pd.Series:
    """Return the class of the model, followed by the options that differ between runs of the class."""
    names = table[MODEL].str.rpartition(".")[2]
    options = [column for column in table if column.startswith(MODEL_OPTIONS) or column == ACCELERATOR]
    for _, group in table.groupby(names):
        varied = [
            column
            for column in options
            if group[column].nunique(dropna=False) > 1 and not _is_seed_of_run(column, group)
        ]
        if varied:
            texts = [
                ", ".join(f"{column.rpartition('.')[2]}={row[column]}" for column in varied)
                for _, row in group.iterrows()
            ]
            names[group.index] += [f" ({text})" for text in texts]
    return names


def _is_seed_of_run(column: str, runs: pd.DataFrame) -> bool:
    """Tell whether an option of the model is just the seed of each run, and so does not distinguish models."""
    return column == f"{MODEL_OPTIONS}{SEED}" and bool((pd.to_numeric(runs[column]) == pd.to_numeric(runs[SEED])).all())


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Average the runs of :func:`read_results` over categories, then over seeds.

    Returns:
        One row per dataset, protocol, noise ratio and model, in the order in which the models first appear. Every
        measure has the columns ``(measure, "mean")`` and ``(measure, "std")``, the standard deviation over the seeds
        (NaN for one seed), in the units of :data:`MEASURES`.
    """
    measured = [name for name in MEASURES if name in runs]
    keys = ["dataset", "protocol", "noise_ratio", "model"]
    scaled = runs[measured] * [MEASURES[name].factor for name in measured]
    means = pd.concat([runs[[*keys, "seed"]], scaled], axis=1).groupby([*keys, "seed"], sort=False).mean()
    summary = means.groupby(keys, sort=False).agg(["mean", "std"])
    order = {model: rank for rank, model in enumerate(runs["model"].unique())}
    return summary.sort_index(key=lambda level: level.map(order) if level.name == "model" else level)


def to_markdown(summary: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Return tables of the averages of some runs in Markdown, one per dataset, protocol and noise ratio."""
    measured = [name for name in MEASURES if (name, "mean") in summary]
    lines = []
    keys = ["dataset", "protocol", "noise_ratio"]
    groups = runs.groupby(keys)
    for setting, table in summary.groupby(level=keys):
        dataset, protocol, ratio = setting
        group = groups.get_group(setting)
        categories = group["category"].nunique()
        seeds = group["seed"].nunique()
        lines += [
            f"### {', '.join(filter(None, (dataset, f'{100 * ratio:g} % noise{_true_share(group)}', protocol)))}",
            "",
            f"{_category_name(group)}; "
            + (f"mean ± standard deviation over {seeds} seeds." if seeds > 1 else "one seed."),
            "",
            # Written by hand, because DataFrame.to_markdown needs another package (tabulate) for the same table
            "| " + " | ".join(["Model", *(MEASURES[name].heading for name in measured)]) + " |",
            "|" + " --- |" + " ---: |" * len(measured),
        ]
        for (*_, model), row in table.iterrows():
            cells = [_cell(row[name, "mean"], row[name, "std"]) for name in measured]
            lines.append("| " + " | ".join([model, *cells]) + " |")
        lines.append("")
        counts = group.groupby("model", sort=False).size()
        lines += [
            f"{model}: only {count} of {categories * seeds} runs exist.\n"
            for model, count in counts.items()
            if count < categories * seeds
        ]
    return "\n".join(lines)


def _true_share(runs: pd.DataFrame) -> str:
    """Return the noise share of some runs as text; empty without noise."""
    shares = {f"{100 * share:.1f}" for share in (runs[NOISE_SHARE].min(), runs[NOISE_SHARE].max()) if share > 0}
    return f" ({' to '.join(sorted(shares, key=float))} % of the training images)" if shares else ""


def _cell(mean: float, std: float) -> str:
    if pd.isna(mean):
        return "n/a"
    return f"{mean:.1f}" if pd.isna(std) else f"{mean:.1f} ± {std:.1f}"


def draw(summary: pd.DataFrame, runs: pd.DataFrame, path: Path) -> None:
    """Plot the average AUROC of some runs against the noise ratio: one line per model, image and pixel side by side.

    Each dataset and protocol has a row of panels.
    """
    curves = [name for name in CURVES if (name, "mean") in summary and summary[name, "mean"].notna().any()]
    settings = list(summary.index.droplevel(["noise_ratio", "model"]).unique())
    models = list(summary.index.unique("model"))
    with mpl.rc_context(mpl.rcParamsDefault):  # a light background even if the user's style is dark
        figure = Figure(figsize=(5 * len(curves), 3.6 * len(settings) + 0.6), dpi=150, layout="constrained")
        axes = figure.subplots(len(settings), len(curves), squeeze=False)
        for row, (dataset, protocol) in enumerate(settings):
            category = _category_name(runs[(runs["dataset"] == dataset) & (runs["protocol"] == protocol)])
            for axis, name in zip(axes[row], curves, strict=True):
                table = summary.loc[dataset, protocol][name]
                for number, model in enumerate(models):
                    if model in table.index.unique("model"):
                        line = table.xs(model, level="model")
                        x = 100 * line.index.to_numpy()
                        style = {"color": f"C{number}", "marker": "osD^vP*X"[number % 8]}
                        axis.errorbar(x, line["mean"], yerr=line["std"].fillna(0), capsize=3, label=model, **style)
                axis.set_title(", ".join(filter(None, (dataset, category, protocol))))
                axis.set_xlabel("Noise ratio [%]")
                axis.set_ylabel(MEASURES[name].heading)
                axis.set_xticks(sorted({100 * ratio for ratio in table.index.unique("noise_ratio")}))
                axis.grid(alpha=0.3)
        handles, labels = axes[0][0].get_legend_handles_labels()
        bars = "bars: standard deviation over seeds" if runs["seed"].nunique() > 1 else None
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(models), 4), title=bars)
        figure.savefig(path)


def _category_name(runs: pd.DataFrame) -> str:
    """Return the category, or the number of categories."""
    categories = runs["category"].unique()
    return categories[0] if len(categories) == 1 else f"mean of {len(categories)} categories"
