"""What a notebook shows: every result as HTML that loads nothing, and a notebook of which each cell is run."""

from __future__ import annotations

import ast
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from flatminima import Estimate, Minimum, audit, measure, notebook, plan, progress, rank
from flatminima.certification import Assumption, Certificate
from flatminima.errors import UsageError
from flatminima.landscape import directions, landscape
from flatminima.table import MeasureTable

NAMES = ["fisher_trace", "margin", "hessian_trace", "path_norm"]


@pytest.fixture(scope="module")
def minimum():
    torch.manual_seed(0)
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    return Minimum(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), (x, y))


def own(html):
    """No address is loaded, tags are closed, nothing is a number of Python's."""
    assert not re.search(r"(src|href)=.http|<script|@import|nan\b|None\b", html)
    assert html.count("<table") == html.count("</table>") and html.count("<div") == html.count("</div>")
    return html


def test_a_table_shows_values_errors_reasons_and_diagnosis(minimum):
    table = measure(minimum, NAMES)
    html = own(table._repr_html_())
    assert f"{table['fisher_trace'].value:.5g}" in html and f"{table['fisher_trace'].stderr:.2g}" in html
    assert "undefined: the margin is not positive" in html
    assert "labels are not fitted" in html and "30 samples" in html


def test_names_and_reasons_are_text(minimum):
    table = MeasureTable({"<b>m</b>": Estimate.missing("a < b & c")}, 1, 1, 0, 0, 0, "<loss>", "", ("<i>",))
    html = own(table._repr_html_())
    assert "&lt;b&gt;m&lt;/b&gt;" in html and "a &lt; b &amp; c" in html and "<loss>" not in html and "<i>" not in html


def test_estimates(minimum):
    assert "<b>2</b> ± 0.1" in own(Estimate(2.0, 0.1)._repr_html_())
    assert "±" not in own(Estimate(2.0, details={"error_of": "exact"})._repr_html_())
    assert "<b>undefined</b>: why" in own(Estimate.missing("why")._repr_html_())


def test_plans_audits_rankings_landscapes(minimum):
    assert "InputJacobian" in own(plan(minimum, ["robustness"])._repr_html_())
    assert "a = " in own(audit(minimum, ["parameter_norm", "parameter_count"])._repr_html_())
    tables = [measure(minimum, ["parameter_norm", "margin"])] * 3
    assert "tau" in own(rank(tables, [0.1, 0.2, 0.3])._repr_html_())
    figure = own(landscape(minimum, directions(minimum, "filter", 1), steps=3)._repr_html_())
    assert figure.lstrip().startswith("<svg") and "Mean loss" in figure


def test_certificates_show_their_terms_and_conditions():
    fields = dict(risk_bound=0.3, empirical_risk=0.1, monte_carlo_upper=0.12, kl=5.0, sigma=0.1, n=100, draws=10)
    rest = dict(delta=0.05, delta_mc=0.01, candidates=1, evaluations=1, holdout_bound=0.2, holdout_network="it",
                prior="<none>", constant_error=0.9)  # fmt: skip
    one = Certificate(**fields, **rest, assumptions=(Assumption("a & b", "fails", "seen"),))
    html = own(one._repr_html_())
    assert "Score, not a certificate" in html and "a &amp; b" in html and "divergence" in html


def test_tables_are_written_as_html_and_parquet(minimum, tmp_path):
    table = measure(minimum, NAMES)
    page = table.to_html(tmp_path / "t.html")
    assert (
        (tmp_path / "t.html").read_text() == page and page.startswith("<!doctype html>".upper()[:9])
    ) or "<html" in page
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table.to_parquet(tmp_path / "t.parquet")
    frame = pandas.read_parquet(tmp_path / "t.parquet").set_index("measure")
    assert frame.loc["fisher_trace", "value"] == table["fisher_trace"].value
    assert frame.loc["path_norm", "undefined"] == table["path_norm"].undefined


def test_tables_are_logged_to_trackers_of_every_kind(tmp_path):
    table = MeasureTable({"a": Estimate(1.0, 0.5), "b": Estimate.missing("no")}, 1, 1, 0, 0, 0, "mse", "")
    seen = []
    table.log(SimpleNamespace(log_metrics=lambda values, step: seen.append((values, step))), step=4)
    table.log(SimpleNamespace(log=lambda values, step: seen.append((values, step))), step=4)
    table.log(SimpleNamespace(add_scalar=lambda name, value, step: seen.append(({name: value}, step))), step=4)
    table.log([lambda step, values: seen.append((values, step)), tmp_path / "log.jsonl"], step=4)
    whole = ({"flatminima/a": 1.0, "flatminima/a.stderr": 0.5}, 4)
    one_by_one = [({"flatminima/a": 1.0}, 4), ({"flatminima/a.stderr": 0.5}, 4)]
    assert seen == [whole, whole, *one_by_one, ({"a": 1.0, "a.stderr": 0.5}, 4)]
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 4, "a": 1.0, "a.stderr": 0.5}
    with pytest.raises(UsageError, match="sink of type int"):
        table.log(3)


def test_progress_shows_in_a_notebook_and_ends(monkeypatch):
    shown = []

    class Handle:
        def update(self, content):
            shown.append(content)

    display = SimpleNamespace(HTML=str, display=lambda content, display_id: shown.append(content) or Handle())
    times = iter(range(100))
    monkeypatch.setattr(notebook.time, "monotonic", lambda: float(next(times)))
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setattr(notebook, "import_module", lambda name: display)
    progress._in_a_notebook.cache_clear()
    for done in range(6):
        progress.report("<sweep>", done, 5)
    progress._in_a_notebook.cache_clear()
    assert len(shown) >= 4 and "&lt;sweep&gt;" in shown[0] and 'max="5"' in shown[0] and "sweep" not in shown[-1]


@pytest.mark.parametrize("shell", [None, SimpleNamespace()], ids=["a script", "IPython in a terminal"])
def test_a_process_that_only_imported_a_kernel_is_no_notebook(monkeypatch, shell):
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    progress._in_a_notebook.cache_clear()
    assert progress._in_a_notebook() is None
    progress._in_a_notebook.cache_clear()


NOTEBOOK = {
    "nbformat": 4,
    "cells": [
        {"source": "import torch\nfrom torch import nn\nimport flatminima\ntorch.manual_seed(0);"},
        {"source": "x, y = torch.randn(20, 3), torch.arange(20) % 2\nnet = nn.Sequential(nn.Linear(3, 2)).eval()"},
        {"source": "minimum = flatminima.Minimum(net, (x, y))\nflatminima.plan(minimum, ['fisher_trace'])"},
        {"source": "table = flatminima.measure(minimum, ['fisher_trace', 'margin'])\ntable"},
        {"source": "table['fisher_trace']"},
    ],
}


def test_a_notebook_is_run_cell_by_cell(tmp_path):
    """As a kernel does: the last expression of a cell is shown by its _repr_html_."""
    (tmp_path / "n.ipynb").write_text(json.dumps(NOTEBOOK))
    names, shown = {}, []
    for cell in json.loads((tmp_path / "n.ipynb").read_text())["cells"]:
        tree = ast.parse(cell["source"])
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) and not cell["source"].endswith(";") else None
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names)._repr_html_())
    assert [("<table" in own(html)) for html in shown] == [True, True, False]
