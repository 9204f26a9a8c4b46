"""The heat map and the pictures of other commands on one network's page; and that a browser finds nothing to say."""

import shutil
import subprocess

import pytest
import torch

from flatminima import Minimum, measure
from flatminima.models import build
from flatminima.report import write_measures
from flatminima.report.sections import heat_map, pictures


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
    assert "The loss around the minimum" in text and 'src="http' not in text
    assert [p["title"] for p in pictures(tmp_path)] == ["The loss around the minimum"]


@pytest.mark.parametrize("size", ["1200,900", "390,800"])
def test_a_browser_renders_it_without_a_word_or_a_request(tmp_path, size):
    """Every host name fails to resolve, so that a request would be an error on the console."""
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    x, y = torch.rand(60, 8), torch.arange(60) % 3
    minimum = Minimum(build("mlp", seed=0, widths=(8, 16, 3)).eval(), (x, y))
    write_measures(measure(minimum, ["pacgen", "frobenius_norm", "margin"]).to_dict(), tmp_path / "report.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={size}"]
    rules = "--host-resolver-rules=MAP * ~NOTFOUND"
    done = subprocess.run(
        [browser, *options, rules, "--dump-dom", f"file://{tmp_path}/report.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "Layer by layer" in done.stdout
    assert "CONSOLE" not in done.stderr
