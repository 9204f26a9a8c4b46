"""The tutorials as notebooks, made from their pages: python examples/notebooks/make.py"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
TUTORIALS = ("practitioners", "researchers")


def notebook(page: str) -> dict[str, Any]:
    """A page in nbformat 4: its text as Markdown cells, its ```python blocks as code cells.

    Args:
        page: Markdown.
    """
    cells: list[dict[str, Any]] = []
    for i, part in enumerate(re.split(r"^```python\n(.*?)^```\n", page, flags=re.DOTALL | re.MULTILINE)):
        text = part.strip("\n")
        if text:
            code: dict[str, Any] = {"execution_count": None, "outputs": []} if i % 2 else {}
            kind = "code" if i % 2 else "markdown"
            cells.append({"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}, **code,
                          "source": text.splitlines(keepends=True)})  # fmt: skip
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def text(name: str) -> str:
    """The notebook of a tutorial, as its file holds it."""
    page = (DOCS / f"tutorial-{name}.md").read_text(encoding="utf-8")
    page = re.sub(r"\]\((?!http)([^)#]+\.md)", r"](../../docs/\1", page)
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in TUTORIALS:
        (HERE / f"{name}.ipynb").write_text(text(name), encoding="utf-8")
