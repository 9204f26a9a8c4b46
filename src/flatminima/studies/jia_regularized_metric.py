"""J20 Table 2: the log-determinant, logits rescaled, of the minima of Table 1 with and without the regularizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flatminima.studies import _jia_table
from flatminima.studies.plot import label, lines, panels, ticks_at
from flatminima.studies.study import Result, Study
from flatminima.studies.verdict import Verdict, compare

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMS = {"logdet_rescaled": "rescaled logits", "logdet": "logits as they are"}


def _claims(results: Sequence[Result]) -> list[Verdict]:
    verdicts = []
    for data, name in dict.fromkeys((r["data"], r["name"]) for r in results):
        own = [r for r in results if (r["data"], r["name"]) == (data, name)]
        for key, form in _FORMS.items():
            ours, plain = _jia_table.regularized([r for r in own if r[key] is not None])
            claim = f"{name} on {data}: the regularizer lowers the log-determinant, {form}"
            verdicts.append(compare(claim, [r[key] for r in ours], [r[key] for r in plain], control=True))
    return verdicts


def _figure(results: Sequence[Result]) -> Figure:
    (along, names), by_way = _jia_table.axis(results), _jia_table.swept(results)
    figure, axes = panels(2, 1)
    for index, (data, name) in enumerate(dict.fromkeys((r["data"], r["name"]) for r in results)):
        own = _jia_table.placed([r for r in results if (r["data"], r["name"]) == (data, name)], by_way=by_way)
        for panel, key in zip(axes, _FORMS, strict=True):
            points = [(place, r[key]) for place, r in own if r[key] is not None]
            lines(panel, [x for x, _ in points], [y for _, y in points], label=f"{name}, {data}", index=index)
    for panel, form in zip(axes, _FORMS.values(), strict=True):
        label(panel, along, "log-determinant (nats)", form, legend="network, data")
        ticks_at(panel, list(names), list(names.values()))
    return figure


STUDY = Study(
    "jia-regularized-metric",
    "Jia & Su 2020, Table 2",
    "The log-determinant of minima with and without the regularizer",
    ("cifar10", "cifar100"),
    _jia_table.configurations,
    _jia_table.run,
    _claims,
    _figure,
    _jia_table.REDUCTION,
    runs_of="jia-regularizer",
)
