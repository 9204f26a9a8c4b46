"""J20 Table 1: test error with and without the Fisher-trace regularizer, its strength chosen on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flatminima.studies import _jia_table
from flatminima.studies.plot import label, lines, panels, ticks_at
from flatminima.studies.study import Result, Study
from flatminima.studies.verdict import Verdict, compare

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _claims(results: Sequence[Result]) -> list[Verdict]:
    verdicts = []
    for data, name in dict.fromkeys((r["data"], r["name"]) for r in results):
        own = [r for r in results if (r["data"], r["name"]) == (data, name)]
        ours, plain = _jia_table.regularized(own)
        traces = [[r["fisher_trace"] for r in group] for group in (ours, plain)]
        claim = f"{name} on {data}: the regularizer lowers the trace of the Fisher matrix"
        verdicts.append(compare(claim, *traces, control=True))
    return verdicts


def _figure(results: Sequence[Result]) -> Figure:
    kinds = list(dict.fromkeys((r["data"], r["name"]) for r in results))
    (along, names), by_way = _jia_table.axis(results), _jia_table.swept(results)
    figure, axes = panels(2, 1)
    for index, (data, name) in enumerate(kinds):
        own = _jia_table.placed([r for r in results if (r["data"], r["name"]) == (data, name)], by_way=by_way)
        for panel, key in zip(axes, ("test_error", "fisher_trace"), strict=True):
            x, y = [place for place, _ in own], [r[key] for _, r in own]
            lines(panel, x, y, label=f"{name}, {data}", index=index, geometric=key == "fisher_trace")
    key = "network, data"
    label(axes[0], along, "test error (share of samples)", "test error", legend=key)
    label(axes[1], along, "trace (nats²)", "trace of the Fisher matrix", log_y=True, legend=key)
    for panel in axes:
        ticks_at(panel, list(names), list(names.values()))
    return figure


STUDY = Study(
    "jia-regularizer",
    "Jia & Su 2020, Table 1",
    "Test error with and without the Fisher-trace regularizer",
    ("cifar10", "cifar100"),
    _jia_table.configurations,
    _jia_table.run,
    _claims,
    _figure,
    _jia_table.REDUCTION,
)
