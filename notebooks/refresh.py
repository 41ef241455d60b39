"""Run notebooks from a clean kernel and keep what they show, without what changes from run to run.

    python notebooks/refresh.py                    # all
    python notebooks/refresh.py paper smollm2      # some

Needs nbclient and ipykernel; ``smollm2`` also needs what its first cell names.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = ("quickstart", "paper", "smollm2", "own_pipeline")
_FLOOR = re.compile(r"(numerical floor )\d[\d.]*(e-?\d+)?")


def read(name: str) -> Any:
    """A notebook of this folder, as it is kept."""
    import nbformat

    return nbformat.read(HERE / f"{name}.ipynb", as_version=4)


def execute(notebook: Any, timeout: int = 600) -> Any:
    """Run all cells in a kernel of their own, in this folder; an error in a cell is raised."""
    from nbclient import NotebookClient

    client = NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(HERE)}})
    client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return stripped(notebook)


def stripped(notebook: Any) -> Any:
    """Without times, bars and warnings on standard error, and numbers of the machine alone."""
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            output.get("metadata", {}).clear()
            if "text" in output:
                output.text = _steady(output.text)
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output.data[kind] = _steady(value)
    return notebook


def _steady(text: str) -> str:
    """Text without the numerical floor's digits, which depend on processor and threads."""
    return _FLOOR.sub(r"\1…", text)


if __name__ == "__main__":
    import nbformat

    for chosen in sys.argv[1:] or NAMES:
        nbformat.write(execute(read(chosen)), HERE / f"{chosen}.ipynb")
        print(chosen)
