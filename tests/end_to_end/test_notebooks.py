# Copyright (C) 2026 The anomalib-softpatch authors
# SPDX-License-Identifier: Apache-2.0

"""The notebooks run from top to bottom on small sets, and are stored without outputs."""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from conftest import ROOT
from samples import save_random_weights

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SMALL = {"num_train": 12, "num_test_good": 4, "num_test_per_defect": 2}
# For each notebook, parameters that make it small, and conditions that must hold at its end
RUNS = {
    "own_folder": (
        f"IMAGE_SIZE, MADE = 128, {SMALL | {'num_hidden': 1}}",
        """
        assert len(findings.table) == 13
        assert len(verdicts) == 10
        assert verdicts["path"].head(3).str.contains("brick|grass|stain").all(), verdicts
        assert (verdicts["anomalous"] == verdicts["anomalous in OpenVINO"]).all()
        assert (verdicts["score"] - verdicts["score in OpenVINO"]).abs().max() < 1e-3
        """,
    ),
    "robustness": (
        f"IMAGE_SIZE, CORESET, RATIOS, MADE = 128, 0.05, [0, 0.4], {SMALL | {'num_hidden': 0}}",
        """
        assert table.shape == (2, 4)
        assert table.notna().all(axis=None)
        assert len(noisy.noise) == 4
        assert table["image_AUROC", "PatchCore"][0.4] < table["image_AUROC", "SoftPatch"][0.4], table
        """,
    ),
}


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_run() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(RUNS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert not cell.outputs
        assert cell.execution_count is None


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """Return the kernel of all notebooks, which does the slow imports once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        patch.setenv("HF_HUB_OFFLINE", "1")
        # The environment of the project, not a kernel of the user
        patch.setenv("JUPYTER_PATH", "")
        manager = KernelManager()
        manager.start_kernel()
        yield manager
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Code that takes a small network in place of the notebook's, an export of which takes most of a minute."""
    backbone = save_random_weights(tmp_path_factory.mktemp("weights"))
    return f'BACKBONE, LAYERS = "{backbone}", ["layer1", "layer2"]'


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str, tmp_path: Path, kernel: KernelManager, small_backbone: str) -> None:
    parameters, expected = RUNS[name]
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    (place,) = [index for index, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    notebook.cells.insert(place + 1, new_code_cell(parameters))
    if name == "own_folder":
        (place,) = [index for index, cell in enumerate(notebook.cells) if "write_weights(" in cell.source]
        notebook.cells.insert(place + 1, new_code_cell(small_backbone))
    notebook.cells.append(new_code_cell("\n".join(line.strip() for line in expected.splitlines())))
    # No variable of another notebook is left, and this one has its own folder
    notebook.cells.insert(0, new_code_cell(f"%reset -f\n%cd -q {tmp_path}"))
    NotebookClient(notebook, km=kernel, timeout=300).execute()
    assert any(output.output_type == "display_data" for cell in code_cells(notebook) for output in cell.outputs)
