"""The pages: results in, one HTML file out. Every name is escaped; the page may load nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flatminima.report import plots
from flatminima.table import write_whole


def write_report(results: dict[str, Any], path: str | Path) -> None:
    """The page of a demonstration.

    Args:
        results: of `flatminima.demo.run_demo`.
        path: of the HTML file, written whole.

    Raises:
        UsageError: the path cannot be written.
    """
    best = next(n for n in results["networks"] if n["name"] == results["best"])
    pacgen = best["measures"]["measures"].get("pacgen", {})
    layers = (pacgen.get("details") or {}).get("layers") or {}
    figures = {
        "ranking": Markup(plots.ranking(results["ranking"])),
        "scatter": Markup(plots.scatter(results["networks"], results["ranking"])),
        "certificate": Markup(plots.certificate(results["certificate"])),
        "layers": Markup(plots.layers(layers, "pacGen (nats)", "pacgen")) if layers else None,
    }
    page = _render(
        "demo.html.j2",
        title="What the minimum says",
        subtitle=f"{len(results['networks'])} networks trained on {results['data']['name']}, measured and ranked",
        verdict=demo_verdict(results),
        figures=figures,
        layer_total=sum(layers.values()),
        **results,
    )
    write_whole(path, page)


def write_measures(document: dict[str, Any], path: str | Path) -> None:
    """The page of one measured network.

    Args:
        document: `MeasureTable.to_dict()`, and the command under ``"command"`` where there was one.
        path: of the HTML file, written whole.

    Raises:
        UsageError: the path cannot be written.
    """
    layered = {
        name: e["details"]["layers"]
        for name, e in document["measures"].items()
        if e["value"] is not None and isinstance(e["details"].get("layers"), dict)
    }
    figures = {name: Markup(plots.layers(values, f"{name} (nats)", name)) for name, values in layered.items()}
    page = _render(
        "measure.html.j2",
        title="Measures of one minimum",
        subtitle=f"{document['parameters']} parameters, {document['samples']} samples",
        verdict=measure_verdict(document),
        figures=figures,
        layer_values=layered,
        **({"command": None} | document),
    )
    write_whole(path, page)


def demo_verdict(results: dict[str, Any]) -> list[str]:
    """What the demonstration found, in sentences."""
    found = {name: c for name, c in results["ranking"].items() if c["tau"] is not None}
    good = [name for name, c in found.items() if c["low"] > 0]
    bad = [name for name, c in found.items() if c["high"] < 0]
    said = []
    everywhere = [name for name in good if found[name]["networks"] == len(results["networks"])]
    partly = [name for name in good if name not in everywhere]
    if everywhere:
        first = found[everywhere[0]]
        said.append(
            f"{everywhere[0]} orders all {len(results['networks'])} networks best as their generalization gap does: "
            f"tau {first['tau']:+.2f} ({first['low']:+.2f} to {first['high']:+.2f})."
        )
        if everywhere[1:]:
            said.append(f"Also decided in favour: {', '.join(everywhere[1:])}.")
    if partly:
        said.append(f"Decided in favour, but only on the networks where they are defined: {', '.join(partly)}.")
    if not good:
        said.append("No measure orders these networks as their gap does beyond doubt.")
    if bad:
        said.append(f"Decided against: {', '.join(bad)} order the networks opposite to their gap.")
    undecided = len(found) - len(good) - len(bad)
    if undecided:
        said.append(f"{undecided} of {len(found)} measures stay undecided on {len(results['networks'])} networks.")
    c = results["certificate"]
    kind = "is certified to err" if c["is_certificate"] else "scores, without proof, to err"
    said.append(
        f"The network of recipe {c['recipe']}, with weights drawn afresh for each prediction, {kind} on at most "
        f"{100 * c['risk_bound']:.1f}% of new digits; on the test set it errs on {100 * c['gibbs_test_error']:.1f}%."
    )
    return said


def measure_verdict(document: dict[str, Any]) -> list[str]:
    """What stands out in one network's measures, in sentences."""
    measures = document["measures"]
    said = []
    margin = measures.get("margin")
    if margin and margin["value"] is not None:
        wrong, loss = margin["details"]["train_error"], margin["details"]["train_loss"]
        said.append(f"Training error {100 * wrong:.2f}%, training loss {loss:.4g}.")
        if margin["value"] <= 0:
            said.append("The margin is not positive: labels are not fitted, and norms over margins mean nothing yet.")
    unknown = [name for name, e in measures.items() if e["value"] is None]
    said.append(f"{len(measures) - len(unknown)} of {len(measures)} measures have a value.")
    if unknown:
        said.append(f"Without meaning here, with the reason below: {', '.join(unknown)}.")
    said.append("All of these are scores: they rank networks and prove nothing.")
    return said


def _render(template: str, **values: Any) -> str:
    loader = PackageLoader("flatminima.report", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template(template).render(**values)
