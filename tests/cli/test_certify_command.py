"""`flatminima certify`: a certificate on stdout, its files, their recomputation, and one line for bad input."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flatminima import certification
from flatminima.certification import families, recipe
from flatminima.cli import around
from flatminima.cli import certify as command
from flatminima.cli.app import app
from flatminima.data import load_tensors
from flatminima.errors import FlatMinimaError
from flatminima.models import build
from flatminima.training import TrainConfig, save_checkpoint, train

MLP = ["certify", "--model", "flatminima.models:mlp", "--model-arg", "widths=(64,24,10)", "--data", "digits"]
QUICK = [*MLP, "--limit", "400", "--prior-epochs", "3", "--passes", "2"]


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; the library's own errors as main shows them."""
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, FlatMinimaError):
        return 2, result.stdout, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_names_checked_without_torch_are_the_ones_torch_knows() -> None:
    assert tuple(sorted(certification.OBJECTIVES)) == command.OBJECTIVES
    assert around.POSTERIORS == families.NAMES
    assert (command.LAYERS, command.AUGMENTATIONS) == (recipe.LAYERS, recipe.AUGMENTATIONS)


def test_a_certificate_its_files_and_their_recomputation(tmp_path: Path) -> None:
    code, out, err = run(*QUICK, "--test-split", "test", "--output", str(tmp_path), "--delta", "0.035")
    assert code == 0
    assert out.startswith("Certificate: error on new samples at most 0.")
    assert "below the bound" in out and "of the bound: divergence" in out
    assert max(map(len, out.splitlines())) <= 80
    assert f"certify --verify {tmp_path / 'certificate.json'}" in err
    document = json.loads((tmp_path / "certificate.json").read_text())
    assert document["is_certificate"] and document["source"]["data"] == "digits"
    drawn = ET.fromstring((tmp_path / "certificate.svg").read_text())
    text = " ".join(drawn.itertext())
    assert "0-1 error (%)" in text and "Monte Carlo" in text and "test error" in text
    code, out, _ = run("certify", "--verify", str(tmp_path / "certificate.json"))
    assert (code, out.splitlines()[-1]) == (0, "every number agrees")
    (tmp_path / "certificate.json").write_text(json.dumps(document | {"risk_bound": 0.01}))
    code, out, _ = run("certify", "--verify", str(tmp_path / "certificate.json"))
    assert code == 3 and "DIFFERS" in out
    code, out, _ = run("certify", "--verify", str(tmp_path / "certificate.json"), "--json")
    found = json.loads(out)
    assert code == 3 and [n["name"] for n in found["numbers"] if not n["agrees"]] == ["risk_bound"]


def test_json_alone_is_on_stdout() -> None:
    code, out, _ = run(*QUICK, "--json", "--epochs", "0", "--layers", "head")
    document = json.loads(out)
    assert code == 0 and document["is_certificate"] and document["kl"] < 1e-6


def test_a_dry_run_says_what_it_would_cost() -> None:
    code, out, _ = run(*QUICK, "--dry-run", "--time", "1")
    assert code == 0 and out.splitlines()[1].endswith("nothing was trained")
    code, out, _ = run(*QUICK, "--dry-run", "--json", "--time", "1", "--prior-fraction", "0")
    document = json.loads(out)
    assert document["prior_epochs"] == 0 and 0 < document["seconds"] <= 60


def test_terms_add_up_to_the_bound() -> None:
    _, out, _ = run(*QUICK, "--json")
    values = json.loads(out)
    terms = certification.Certificate.from_dict(values).terms()
    assert sum(terms.values()) == pytest.approx(values["risk_bound"], rel=1e-12)
    assert all(term >= 0 for term in terms.values())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A prior trained on the first half of some digits, and a network trained on from there with the second."""
    folder = tmp_path_factory.mktemp("weights")
    model = build("mlp", seed=0, widths=(64, 24, 10))
    for name, split in (("prior", "train[:400]"), ("trained", "train[400:800]")):
        train(model, *load_tensors("digits", split), config=TrainConfig(lr=0.05, epochs=6))
        save_checkpoint(model, folder / f"{name}.safetensors")
    return str(folder / "prior.safetensors"), str(folder / "trained.safetensors")


def test_around_a_network_that_is_trained_already(checkpoints: tuple[str, str], tmp_path: Path) -> None:
    prior, trained = checkpoints
    around = [*MLP, "--checkpoint", trained, "--split", "train[400:800]", "--draws", "200"]
    learned = [*around, "--posterior", "diagonal_laplace", "--prior-checkpoint", prior, "--prior-split", "train[:400]"]
    code, out, _ = run(*learned, "--output", str(tmp_path))
    assert code == 0 and out.startswith("Certificate:")
    document = json.loads((tmp_path / "certificate.json").read_text())
    assert document["prior"] == "trained on 400 other samples" and document["n"] == 400
    assert (tmp_path / "certificate.svg").exists()
    code, out, _ = run(*around, "--posterior", "gaussian", "--json")
    free = json.loads(out)
    assert free["is_certificate"] and free["prior"] == "initial weights of seed 0, no data"
    assert free["risk_bound"] > document["risk_bound"]
    seen = [*around, "--posterior", "gaussian", "--prior-checkpoint", prior, "--prior-split", "train[300:700]"]
    code, _, err = run(*seen)
    assert code == 2 and "bound" in err
    code, out, _ = run(*seen, "--score")
    assert code == 0 and out.startswith("Score, not a certificate")


def test_weights_to_start_from_are_accounted_for(checkpoints: tuple[str, str]) -> None:
    start = [*MLP, "--split", "train[:400]", "--checkpoint", checkpoints[0], "--prior-fraction", "0", "--passes", "2"]
    code, _, err = run(*start)  # it was trained on them
    assert code == 2 and "as no network does that no data has touched" in err
    code, out, _ = run(*start, "--score")
    assert code == 0 and out.startswith("Score, not a certificate")
    code, out, _ = run(*start, "--split", "train[400:800]", "--initial", "the first 400 digits")
    assert code == 0 and out.startswith("Certificate:") and "the first 400 digits" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["certify"], "needs --model and --data, or --verify"),
        ([*QUICK, "--delta", "1"], "got --delta 1.0; expected a probability in (0, 1)"),
        ([*QUICK, "--delta-mc", "-0.1"], "got --delta-mc -0.1"),
        ([*QUICK, "--prior-fraction", "1"], "expected a share in [0, 1)"),
        ([*QUICK, "--time", "0"], "expected minutes above 0"),
        ([*QUICK, "--objective", "quad"], "did you mean 'quadratic'"),
        ([*QUICK, "--layers", "haed"], "did you mean 'head'"),
        ([*QUICK, "--augment", "flip"], "unknown augmentation 'flip'"),
        ([*QUICK, "--test-split", "train"], "test data must not be trained on"),
        ([*QUICK, "--test-split", "train[:300]", "--split", "train[:400]"], "was passed as training data"),
        ([*QUICK, "--sigma", "0"], "must be positive"),
        ([*QUICK, "--prior-fraction", "0", "--augment", "shift1"], "never augmented"),
        ([*MLP, "--limit", "10"], "needs at least 8"),
        ([*QUICK, "--scaling", "unti"], "did you mean 'unit'"),
        ([*QUICK, "--checkpoint", "/no/such"], "no file /no/such for --checkpoint"),
        ([*QUICK, "--output", "/dev/null/x"], "cannot write to /dev/null/x"),
        (["certify", "--verify", "/no/such.json"], "no file /no/such.json for --verify"),
        ([*QUICK, "--posterior", "gaussian"], "needs --checkpoint"),
        ([*QUICK, "--posterior", "gausian"], "did you mean 'gaussian'"),
        ([*QUICK, "--prior-split", "train"], "belong to --posterior"),
        (["certify", "--verify", __file__], "is not JSON"),
        (["certify", "--model", "nothing", "--data", "digits"], "expected package.module:factory"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], says: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert says in err and "\n" not in err
