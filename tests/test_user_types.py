"""What a type checker says of a user's file: real types, and no error under --strict."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import pytest

import flatminima

PACKAGE = Path(flatminima.__file__).parent
FILE = """
import torch
import flatminima
from flatminima import Minimum, bounds, certify, measure, measures, optim, rank
from flatminima.statistics import Gram
from flatminima.track import Tracker

net = torch.nn.Linear(4, 3)
data = (torch.randn(20, 4), torch.arange(20) % 3)
minimum = Minimum(net, data)
reveal_type(minimum)
reveal_type(measure(minimum))
reveal_type(measure(minimum)["fisher_trace"].value)
reveal_type(measures.fisher_trace(minimum))
reveal_type(measures.fisher_trace(minimum).stderr)
reveal_type(measures.pacgen)
reveal_type(minimum[Gram(10)])
reveal_type(flatminima.measures.margin(minimum, fraction=0.1))
reveal_type(bounds.mcallester)
reveal_type(certify(net, data))
reveal_type(certify(net, data).risk_bound)
reveal_type(rank([minimum], [0.1]))
reveal_type(optim.PertOPT(torch.optim.SGD(net.parameters(), lr=0.1)))
reveal_type(flatminima.Tracker)
reveal_type(flatminima.Ranks)
reveal_type(flatminima.diagnose)
reveal_type(Tracker(net, data))
"""
TYPES = [
    "flatminima.core.minimum.Minimum",
    "flatminima.table.MeasureTable",
    "float | None",
    "flatminima.estimate.Estimate",
    "float | None",
    "def (flatminima.core.statistic.Statistics, *, gamma: float",
    "flatminima.statistics.gram.GramMatrices",
    "flatminima.estimate.Estimate",
    "def (risk: Any, kl: Any, n: Any, delta: Any)",
    "flatminima.certification.certificate.Certificate",
    "float",
    "flatminima.ranking.table.RankTable",
    "flatminima.optim.pertopt.PertOPT",
    "def (model: Any, probe: Any, *,",
    "def (group: Any =) -> flatminima.core.distributed.Ranks",
    "def (estimates: typing.Mapping[str, flatminima.estimate.Estimate], minimum: flatminima.core.minimum.Minimum",
    "flatminima.track.tracker.Tracker",
]


@pytest.mark.slow
@pytest.mark.apart
def test_a_users_file_has_real_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch is skipped, so that it takes seconds: what it gives is Any there, and what is ours is not."""
    api = pytest.importorskip("mypy.api")
    (tmp_path / "user.py").write_text(FILE)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\npython_version = 3.11\nfollow_imports_for_stubs = True\n"
        "[mypy-torch.*,numpy.*,scipy.*,matplotlib.*,pandas.*,transformers.*,rich.*,typer.*,safetensors.*,jinja2.*]\n"
        "follow_imports = skip\nignore_missing_imports = True\n"
        "[mypy-flatminima.*]\nfollow_imports = silent\n"
    )
    monkeypatch.setenv("MYPYPATH", os.fspath(PACKAGE.parent))
    cache = Path(tempfile.gettempdir()) / f"flatminima-mypy-{os.getuid() if hasattr(os, 'getuid') else 0}"
    out, err, _ = api.run(
        ["--config-file", os.fspath(tmp_path / "mypy.ini"), "--cache-dir", os.fspath(cache), "--hide-error-context",
         "--no-color-output", "--strict", os.fspath(tmp_path / "user.py")]
    )  # fmt: skip
    revealed = re.findall(r'Revealed type is "(.+)"$', out, flags=re.MULTILINE)
    assert not err and "error:" not in out, out + err
    assert len(revealed) == len(TYPES), out
    for found, expected in zip(revealed, TYPES, strict=True):
        assert found.startswith(expected), (found, expected)
