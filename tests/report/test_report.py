"""The report: one file, nothing loaded, names escaped, renders in a browser without a complaint."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flatminima.cli.certificate import recorded
from flatminima.cli.demo import _certificate
from flatminima.demo import run_demo
from flatminima.errors import CheckpointError, UsageError
from flatminima.report import plots, write_measures, write_report
from flatminima.report.page import demo_verdict, measure_verdict


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_demo(tmp_path_factory.mktemp("demo"), quick=True)


FIGURES = 9  # ranking, six measures against the gap, certificate, layers


class Page(HTMLParser):
    """Collects tags and what they would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:")):
                self.loads.append(f"{tag} {value}")


def test_the_page_is_self_contained(results: dict[str, Any], tmp_path: Path) -> None:
    write_report(results, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads == []
    assert "script" not in page.tags
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\((?!#)", text)
    assert page.tags.count("svg") == FIGURES
    assert len(page.ids) == len(set(page.ids)), "figures of one page share ids"
    assert len(text) < 1_500_000
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_every_figure_has_a_name_and_axes_have_labels(results: dict[str, Any], tmp_path: Path) -> None:
    write_report(results, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<svg role="img" aria-label="[^"]{10,}"', text)) == FIGURES
    for label in ("generalization gap (%)", "0-1 error (%)", "pacgen (nats)", "95% interval"):
        assert label in text


def test_hostile_names_are_text(results: dict[str, Any], tmp_path: Path) -> None:
    """A layer or network can be called <script>; it must stay a name, in tables and in figures."""
    bad = "<script>alert(1)</script>"
    document = copy.deepcopy(results)
    network = document["networks"][0]
    network["name"] = document["best"] = bad
    network["measures"]["measures"]["pacgen"]["details"]["layers"] = {bad: 1.0, "b & <i>": 2.0}
    document["certificate"]["prior"] = bad
    write_report(document, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "i" not in page.tags


def test_the_page_of_one_network(results: dict[str, Any], tmp_path: Path) -> None:
    document = copy.deepcopy(results["networks"][0]["measures"])
    command = {"model": "<b>:net", "model_arg": ["widths=(1, 2)", "bias=true"], "limit": 5}
    write_measures(document | {"command": command}, tmp_path / "one.html")
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads == []
    assert "b" not in page.tags
    assert "--model-arg &#39;widths=(1, 2)&#39; --model-arg bias=true --limit 5" in text
    assert all(name in text for name in document["measures"])
    for name, e in document["measures"].items():
        if e["undefined"]:
            assert e["undefined"].split(":")[0][:20] in text, name


def test_the_page_does_without_what_is_undefined(results: dict[str, Any], tmp_path: Path) -> None:
    """Two networks rank nothing; a certificate may lack a hold-out bound; noise levels may outnumber colours."""
    document = copy.deepcopy(results)
    for c in document["ranking"].values():
        c.update(tau=None, low=None, high=None, undefined="2 networks; a correlation needs 3")
    document["certificate"]["holdout_bound"] = None
    for e in document["networks"][0]["measures"]["measures"].values():
        e["details"].pop("layers", None)
    document["best"] = document["networks"][0]["name"]
    write_report(document, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 2

    document = copy.deepcopy(results)
    document["networks"] = document["networks"] * 3
    for i, network in enumerate(document["networks"]):
        document["networks"][i] = copy.deepcopy(network) | {"recipe": network["recipe"] | {"label_noise": i / 20}}
    write_report(document, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("% label noise</span>") == 12


def test_many_layers_are_cut_in_the_figure_and_kept_in_the_table(results: dict[str, Any], tmp_path: Path) -> None:
    document = copy.deepcopy(results["networks"][0]["measures"])
    document["measures"] = {"pacgen": document["measures"]["pacgen"]}
    document["measures"]["pacgen"]["details"]["layers"] = {f"layer-{i}.weight": float(i) for i in range(200)}
    write_measures(document, tmp_path / "one.html")
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert "The 30 largest of 200" in text
    assert text.count(">layer-199.weight<") == 3  # figure, its table, the heat map
    assert text.count(">layer-0.weight<") == 2


def test_figures_follow_the_theme(results: dict[str, Any], tmp_path: Path) -> None:
    """A colour of the palette that is not a variable would be dark on dark."""
    write_report(results, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for figure in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        assert "currentColor" in figure
        assert not {c for c in re.findall(r"#[0-9a-f]{6}\b", figure)} - {"#8a8a8a"}


def test_an_undefined_certificate_bound_does_not_break_the_page(results: dict[str, Any], tmp_path: Path) -> None:
    document = copy.deepcopy(results)
    document["certificate"] |= {"is_certificate": False, "standing": "score"}
    document["certificate"]["assumptions"][0]["holds"] = False
    write_report(document, tmp_path / "report.html")
    assert "Score, not a certificate" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_verdict_says_what_the_numbers_say(results: dict[str, Any]) -> None:
    document = copy.deepcopy(results)
    for c in document["ranking"].values():
        if c["tau"] is not None:
            c.update(tau=0.0, low=-0.5, high=0.5, networks=len(document["networks"]))
    assert "No measure orders these networks" in demo_verdict(document)[0]
    document["ranking"]["pacgen"].update(tau=0.9, low=0.5, high=1.0)
    assert demo_verdict(document)[0].startswith("pacgen follows the generalization gap most closely across all 4")
    document["ranking"]["fisher_trace"].update(tau=-0.9, low=-1.0, high=-0.5)
    assert any("Below 0: fisher_trace order" in s for s in demo_verdict(document))
    document["ranking"]["pacgen"]["networks"] = 3
    assert any("only on the networks where they are defined: pacgen" in s for s in demo_verdict(document))
    bound = document["certificate"]["risk_bound"]
    assert f"at most {100 * bound:.1f}%" in demo_verdict(document)[-1]


def test_an_unfitted_network_is_said_to_be(results: dict[str, Any]) -> None:
    document = copy.deepcopy(results["networks"][0]["measures"])
    document["measures"]["margin"]["value"] = -1.0
    assert any("labels are not fitted" in s for s in measure_verdict(document))


def test_a_folder_that_is_not_there_is_refused_and_nothing_is_left(results: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        write_report(results, tmp_path / "absent" / "report.html")
    assert list(tmp_path.iterdir()) == []


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium to render the page")
def test_chromium_renders_it_without_a_complaint_or_a_request(results: dict[str, Any], tmp_path: Path) -> None:
    """Console messages go to the log; a page that loads anything from elsewhere would be refused by its own policy."""
    write_report(results, tmp_path / "report.html")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        "--v=0",
        "--window-size=390,4000",
    ]
    done = subprocess.run(
        [
            str(CHROMIUM),
            *flags,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            f"file://{tmp_path}/report.html",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert done.stdout.count("<svg") == FIGURES


def test_results_are_strict_json(results: dict[str, Any]) -> None:
    json.dumps(results, allow_nan=False)


def test_the_demonstrations_certificate_is_derived_again(results: dict[str, Any], tmp_path: Path) -> None:
    """`report` reads results.json: a verdict that was written into it is not printed."""
    path, kept = tmp_path / "results.json", results["certificate"]
    again = recorded(json.loads(json.dumps(results)), path)["certificate"]
    assert again == json.loads(json.dumps(kept)) | {"assumptions": again["assumptions"], "details": again["details"]}
    false = kept | {"statement": "Certificate: error <= 0.0001", "standing": "certificate", "is_certificate": True}
    failed = false | {"assumptions": [kept["assumptions"][0] | {"holds": False}, *kept["assumptions"][1:]]}
    again = recorded(results | {"certificate": failed}, path)["certificate"]
    assert again["statement"].startswith("Score, not a certificate") and not again["is_certificate"]
    with pytest.raises(CheckpointError, match=r"risk_bound is 0\.0001, its own counts give"):
        recorded(results | {"certificate": false | {"risk_bound": 1e-4}}, path)
    with pytest.raises(UsageError, match="holds no certificate"):
        recorded(results | {"certificate": None}, path)


def test_the_page_and_the_terminal_round_bounds_up(results: dict[str, Any], tmp_path: Path) -> None:
    odd = {"risk_bound": 0.41201, "holdout_bound": 0.30201, "delta": 1e-8}
    document = results | {"certificate": results["certificate"] | odd}
    write_report(document, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "With probability 1 - 1e-08 over" in text and "<strong>41.3%</strong>" in text
    assert '<td class="n">0.4121</td>' in text and '<td class="n">0.3021</td>' in text
    assert any("at most 41.3% of new digits" in line for line in demo_verdict(document))
    said = "\n".join(_certificate(document["certificate"]))
    assert "With probability 1 - 1e-08 over" in said and "at most 41.3% of" in said and "samples: 30.3%" in said
    assert "41.3%" in plots.certificate(document["certificate"])
    assert "score 41.21%" in plots.certificate_terms(0.412001, {"errors seen": 0.412001}, {}, standing="score")
