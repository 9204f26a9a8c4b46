"""The heat map and the pictures of other commands on one network's page; and that a browser finds nothing to say."""

import html
import re
import shutil
import subprocess

import pytest
import torch

from flatminima import Minimum, measure
from flatminima.cli import explain
from flatminima.models import build
from flatminima.report import write_measures
from flatminima.report.sections import heat_map, pictures
from flatminima.rescaling import audit

BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)


def test_shades_are_shares_of_each_measures_largest_layer():
    found = heat_map([{"name": "a", "values": {"x": 1.0, "y": -4.0}}, {"name": "b", "values": {"y": 0.0, "z": None}}])
    assert found["names"] == ["a", "b"]
    assert found["rows"] == [
        ("x", [{"value": 1.0, "shade": 25}, None]),
        ("y", [{"value": -4.0, "shade": 100}, {"value": 0.0, "shade": 0}]),
        ("z", [None, None]),
    ]
    assert heat_map([]) is None


def test_the_page_has_both_and_loads_nothing(tmp_path):
    x, y = torch.rand(60, 8), torch.arange(60) % 3
    minimum = Minimum(build("mlp", seed=0, widths=(8, 16, 3)).eval(), (x, y))
    table = measure(minimum, ["pacgen", "frobenius_norm", "margin"])
    (tmp_path / "landscape.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    write_measures(table.to_dict(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert 'id="layers"' in text and "color-mix" in text
    assert text.count("data:image/svg+xml;base64,") == 1
    assert "The loss around the weights" in text and 'src="http' not in text
    assert [p["title"] for p in pictures(tmp_path)] == ["The loss around the weights"]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("size", ["1200,900", "390,800"])
def test_a_browser_renders_it_without_a_word_or_a_request(tmp_path, size):
    """Every host name fails to resolve, so that a request would be an error on the console."""
    x, y = torch.rand(60, 8), torch.arange(60) % 3
    minimum = Minimum(build("mlp", seed=0, widths=(8, 16, 3)).eval(), (x, y))
    write_measures(measure(minimum, ["pacgen", "frobenius_norm", "margin"]).to_dict(), tmp_path / "report.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={size}"]
    rules = "--host-resolver-rules=MAP * ~NOTFOUND"
    done = subprocess.run(
        [BROWSER, *options, rules, "--dump-dom", f"file://{tmp_path}/report.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "Layer by layer" in done.stdout
    assert "CONSOLE" not in done.stderr


FRAME = """<!doctype html><html><body><iframe id=f style="width:360px;height:800px;border:0" srcdoc="{page}"></iframe>
<script>onmessage = e => document.body.dataset.widths = e.data</script></body></html>"""
PROBE = "<script>parent.postMessage(document.documentElement.scrollWidth + ' ' + innerWidth, '*')</script>"


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("broken", [False, True])
def test_a_phone_scrolls_down_only(broken, tmp_path):
    """360 pixels wide; the policy that forbids scripts is taken off for the question. A wide block is seen."""
    x, y = torch.rand(60, 8), torch.arange(60) % 3
    minimum = Minimum(build("mlp", seed=0, widths=(8, 16, 3)).eval(), (x, y))
    names = ["pacgen", "frobenius_norm", "margin", "bicriteria", "effective_dimension", "spectral_complexity"]
    document = measure(minimum, names).to_dict() | {"audit": audit(minimum, ["pacgen", "hessian_trace"]).to_dict()}
    explain.write(explain.landscapes(minimum, 0), tmp_path)
    write_measures(document, tmp_path / "report.html")
    page = re.sub(r"<meta http-equiv=.Content-Security-Policy.*?>", "", (tmp_path / "report.html").read_text())
    assert page.count("data:image/svg+xml") == 4
    wide = "<div style='width:900px'>wide</div>" if broken else ""
    page = page.replace("</body>", f"{wide}{PROBE}</body>")
    (tmp_path / "phone.html").write_text(FRAME.format(page=html.escape(page)))
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom",
         f"file://{tmp_path}/phone.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    content, window = map(int, re.search(r'data-widths="(\d+) (\d+)"', done.stdout).groups())
    assert window == 360 and (content > window) is broken


ROWS = """<script>const cut = [...document.querySelectorAll('table.rows')].map(t => t.parentElement)
.filter(s => s.scrollWidth > s.clientWidth || s.getBoundingClientRect().right > innerWidth).length;
parent.postMessage(cut + ' ' + innerWidth, '*')</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("folds", [True, False])
def test_on_a_phone_reasons_are_read_without_scrolling_sideways(folds, tmp_path):
    """Tables of long texts fold into rows below 640 pixels; without that rule the reason of `undefined` is cut off."""
    x, y = torch.rand(60, 8), torch.arange(60) % 3
    minimum = Minimum(build("mlp", seed=0, widths=(8, 16, 3)).eval(), (x, y))
    table = measure(minimum, ["distance_from_init", "frobenius_norm", "fisher_trace", "hessian_top_eigenvalue"])
    assert table["distance_from_init"].undefined
    write_measures(table.to_dict(), tmp_path / "report.html")
    page = re.sub(r"<meta http-equiv=.Content-Security-Policy.*?>", "", (tmp_path / "report.html").read_text())
    page = page if folds else page.replace("  table.rows", "  table.none")
    (tmp_path / "phone.html").write_text(FRAME.format(page=html.escape(page.replace("</body>", f"{ROWS}</body>"))))
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom",
         f"file://{tmp_path}/phone.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    cut, window = map(int, re.search(r'data-widths="(\d+) (\d+)"', done.stdout).groups())
    assert window == 360 and (cut == 0) is folds
