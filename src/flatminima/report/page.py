"""The pages: results in, one HTML file out. Every name is escaped; the page may load nothing."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flatminima.display import ceiled, ceiled_percent, probability
from flatminima.escaping import shown_lines
from flatminima.io import write_whole
from flatminima.report import plots
from flatminima.report.sections import heat_map, pictures
from flatminima.report.theme import GLYPHS, PALETTE, variables


def write_report(results: dict[str, Any], path: str | Path) -> None:
    """The page of a demonstration.

    Args:
        results: of `flatminima.demo.run_demo`.
        path: of the HTML file, written whole.

    Raises:
        UsageError: the path cannot be written.
    """
    networks = results["networks"]
    best = next(n for n in networks if n["name"] == results["best"])
    pacgen = best["measures"]["measures"].get("pacgen", {})
    layers = (pacgen.get("details") or {}).get("layers") or {}
    noises = sorted({n["recipe"]["label_noise"] for n in networks})
    shown = plots.defined(results["ranking"])[: plots.SCATTERS]
    page = render_template(
        "demo.html.j2",
        title="Networks, measured and ranked",
        subtitle=f"{len(networks)} networks trained on {results['data']['name']}",
        verdict=demo_verdict(results),
        ranking_figure=Markup(plots.ranking(results["ranking"])),
        scatters=[Markup(plots.scatter(networks, name, noises)) for name in shown],
        legend=[
            (GLYPHS[i % len(GLYPHS)], i % len(PALETTE), f"{noise:.0%} label noise") for i, noise in enumerate(noises)
        ],
        certificate_figure=Markup(plots.certificate(results["certificate"])),
        layers=_layers("pacgen", layers) if layers else None,
        provenance=_demo_provenance(results),
        **{k: results[k] for k in ("ranking", "networks", "best", "certificate", "quick")},
    )
    write_whole(path, page)


def write_measures(document: dict[str, Any], path: str | Path) -> None:
    """The page of one measured network.

    Args:
        document: `MeasureTable.to_dict()`; where the command line made it, with ``"command"`` (its options),
            ``"versions"``, ``"device"`` and ``"threads"``.
        path: of the HTML file, written whole; pictures of `flatminima landscape` and `certify` beside it go in.

    Raises:
        UsageError: the path cannot be written.
    """
    write_whole(path, measures_page(document, Path(path).parent))


def measures_page(document: dict[str, Any], folder: Path | None = None) -> str:
    """The page of one measured network, with the pictures that lie in `folder`."""
    layered = [
        _layers(name, e["details"]["layers"], e["details"].get("layer_stderrs"))
        for name, e in document["measures"].items()
        if e["value"] is not None and isinstance(e["details"].get("layers"), dict) and e["details"]["layers"]
    ]
    return render_template(
        "measure.html.j2",
        title="Measures of one minimum",
        subtitle=f"{document['parameters']:,} parameters, {document['samples']:,} samples",
        verdict=measure_verdict(document),
        layered=layered,
        heat=heat_map(layered),
        pictures=[] if folder is None else pictures(folder),
        measures=document["measures"],
        diagnosis=document.get("diagnosis", []),
        spectrum=_spectrum(document["measures"]),
        curve=_curve(document["measures"]),
        audit=document.get("audit"),
        provenance=_measure_provenance(document),
    )


def _spectrum(measures: dict[str, Any]) -> Markup | None:
    """Density of the eigenvalues, where it was estimated."""
    for name in ("effective_dimension", "negative_curvature"):
        found = measures.get(name)
        if found and found["value"] is not None and found["details"].get("density"):
            return Markup(plots.density(found["details"]["density"]))
    return None


def _curve(measures: dict[str, Any]) -> Markup | None:
    """Expected sharpness against divergence, where it was measured."""
    found = measures.get("bicriteria")
    if found and found["value"] is not None and len(found["details"].get("curve", ())) > 1:
        return Markup(plots.bicriteria_curve(found["details"]["curve"], found["details"]["alpha"]))
    return None


def _layers(name: str, values: dict[str, float], errors: dict[str, float | None] | None = None) -> dict[str, Any]:
    """A figure and its table."""
    label = plots.labelled_unit(name)
    return {
        "name": name,
        "label": label,
        "values": values,
        "errors": errors or {},
        "figure": Markup(plots.layers(values, label, name, errors)),
        "cut": plots.BARS if len(values) > plots.BARS else None,
    }


def demo_verdict(results: dict[str, Any]) -> list[str]:
    """Results of the demonstration, in sentences."""
    n = len(results["networks"])
    found = {name: c for name, c in results["ranking"].items() if c["tau"] is not None}
    good = [name for name, c in found.items() if c["low"] > 0]
    bad = [name for name, c in found.items() if c["high"] < 0]
    everywhere = [name for name in good if found[name]["networks"] == n]
    partly = [name for name in good if name not in everywhere]
    said = []
    if everywhere:
        first = found[everywhere[0]]
        said.append(
            f"{everywhere[0]} follows the generalization gap most closely across all {n} networks: "
            f"Kendall's tau {first['tau']:+.2f}, 95% interval {first['low']:+.2f} to {first['high']:+.2f}."
        )
        if everywhere[1:]:
            said.append(f"Also above 0 beyond their interval: {', '.join(everywhere[1:])}.")
    if partly:
        said.append(f"Above 0 too, but only on the networks where they are defined: {', '.join(partly)}.")
    if not good:
        said.append("No measure orders these networks as their gap does beyond doubt.")
    if bad:
        said.append(f"Below 0: {', '.join(bad)} order the networks opposite to their gap.")
    undecided = [name for name in found if name not in good and name not in bad]
    if undecided:
        said.append(f"Undecided on {n} networks: {', '.join(undecided)}.")
    c = results["certificate"]
    kind = "is certified to err" if c["is_certificate"] else "scores, without proof, to err"
    said.append(
        f"A network of recipe {c['recipe']}, its weights drawn afresh for each prediction, {kind} on at most "
        f"{ceiled_percent(c['risk_bound'])} of new digits; on the test set it errs on "
        f"{100 * c['gibbs_test_error']:.1f}%."
    )
    return said


def measure_verdict(document: dict[str, Any]) -> list[str]:
    """Findings in one network's measures, in sentences."""
    measures = document["measures"]
    said = []
    margin = measures.get("margin")
    if margin and margin["value"] is not None:
        wrong, loss = margin["details"]["train_error"], margin["details"]["train_loss"]
        said.append(f"Error on these samples {100 * wrong:.2f}%, mean loss {loss:.4g}.")
        if margin["value"] <= 0:
            said.append("The margin is not positive: labels are not fitted, and norms over margins mean nothing yet.")
    unknown = [name for name, e in measures.items() if e["value"] is None]
    said.append(f"{len(measures) - len(unknown)} of {len(measures)} measures have a value.")
    if unknown:
        said.append(f"Without meaning here, with the reason below: {', '.join(unknown)}.")
    if all(e["kind"] == "score" for e in measures.values()):
        said.append("All of these are scores: they rank networks trained on the same data, and prove nothing alone.")
    return said


def _demo_provenance(results: dict[str, Any]) -> list[tuple[str, str]]:
    data, first = results["data"], results["networks"][0]["measures"]
    flags = f"--seed {results['seed']}" + (" --quick" if results["quick"] else "")
    return [
        ("command", f"flatminima demo {flags}"),
        ("data", f"{data['name']}: {data['train']} training and {data['test']} test samples"),
        ("data fingerprint", data["fingerprint"]),
        *version_rows(results["versions"]),
        ("threads", "1"),
        ("time", f"{results['seconds']:.0f} s, networks kept from an earlier run not counted"),
        ("passes a network", _passes(first)),
        *(("note", note) for note in first["notes"]),
        ("numbers", "results.json, beside this page"),
    ]


def _measure_provenance(document: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if document.get("command"):
        rows.append(("command", _command(document["command"])))
    rows += [
        ("samples", f"{document['samples']} (fingerprint {document['data']})"),
        ("parameters", str(document["parameters"])),
        ("loss", document["loss"]),
        *version_rows(document.get("versions", {})),
        *((name, str(document[name])) for name in ("device", "threads") if name in document),
        ("time", f"{document['seconds']:.1f} s"),
        ("passes", _passes(document)),
    ]
    return rows + [("note", note) for note in document["notes"]]


def version_rows(versions: dict[str, str]) -> list[tuple[str, str]]:
    """The row of a page's provenance."""
    return [("versions", ", ".join(f"{k} {v}" for k, v in versions.items()))] if versions else []


def _passes(table: dict[str, Any]) -> str:
    return f"{table['forward_passes']:.1f} forward and {table['backward_passes']:.1f} backward over the samples"


def _command(options: dict[str, Any]) -> str:
    """The command again, quoted for a shell."""
    words = ["flatminima", "measure"]
    for key, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                words.append(f"--{key}")
            elif one is not None:
                words += [f"--{key.replace('_', '-')}", str(one)]
    return shlex.join(words)


def render_template(template: str, **values: Any) -> str:
    light, dark = Markup(variables()), Markup(variables(dark=True))
    return _environment().get_template(template).render(light=light, dark=dark, **values)


@cache
def _environment() -> Environment:
    loader = PackageLoader("flatminima.report", "templates")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown)
    made.filters |= {f.__name__: f for f in (ceiled, ceiled_percent, probability)}
    return made


def _shown(value: Any) -> Any:
    """A name without what a reader would not see; figures and numbers as they are."""
    return shown_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value
