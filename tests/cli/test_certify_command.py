"""`flatminima certify`: a certificate on stdout, its files, their recomputation, and one line for bad input."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flatminima import certification
from flatminima.cli import verify as verify_command
from flatminima.cli.app import app
from flatminima.cli.sample_options import Reading
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


def test_a_certificate_its_files_and_their_recomputation(tmp_path: Path) -> None:
    code, out, err = run(*QUICK, "--test-split", "test", "--output", str(tmp_path), "--delta", "0.035")
    assert code == 0
    assert (
        out.startswith("Certificate: error <= 0.") and "(probability 0.965), fresh weights per" in out.splitlines()[0]
    )
    assert "a constant answer errs on" in out and "hold-out bound" in out
    assert "below the bound" in out and "of the bound: divergence" in out
    assert max(map(len, out.splitlines())) <= 85
    assert f"certify --verify {tmp_path / 'certificate.json'}" in err
    document = json.loads((tmp_path / "certificate.json").read_text())
    assert document["is_certificate"] and document["source"]["data"] == "digits"
    drawn = ET.fromstring((tmp_path / "certificate.svg").read_text())
    text = " ".join(drawn.itertext())
    assert "0-1 error (%)" in text and "Monte Carlo" in text and "test error" in text
    verify = ["certify", "--verify", str(tmp_path / "certificate.json"), "--data", "digits"]
    code, out, _ = run(*verify)  # a network of the library with plain numbers: the record may name it
    assert (code, out.splitlines()[-1]) == (0, "every number agrees")
    assert out.startswith("Conditional certificate: if, as stated, the prior's weights are what the record says")
    assert "not recomputed: that the prior's weights were made without the bound's samples" in out
    (tmp_path / "certificate.json").write_text(json.dumps(document | {"risk_bound": 0.01}))
    code, out, _ = run(*verify)
    assert code == 3 and "DIFFERS" in out and out.startswith("Not the certificate that these weights give")
    code, out, _ = run(*verify, "--json")
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
    assert code == 0 and out.startswith(
        "Conditional certificate: if, as stated, the prior was trained on the 400 samples"
    )
    document = json.loads((tmp_path / "certificate.json").read_text())
    assert document["prior"] == "trained on 400 other samples" and document["n"] == 400
    assert (tmp_path / "certificate.svg").exists()
    record = str(tmp_path / "certificate.json")
    code, out, _ = run("certify", "--verify", record, "--data", "digits")
    assert (code, out.splitlines()[-1]) == (0, "every number agrees")
    (tmp_path / "certificate.json").write_text(json.dumps(document | {"risk_bound": 0.9 * document["risk_bound"]}))
    assert run("certify", "--verify", record, "--data", "digits")[0] == 3
    code, out, _ = run(*around, "--posterior", "gaussian", "--json", "--evaluations", "1")
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
    assert code == 2 and "--checkpoint needs --stated" in err
    code, _, err = run(*start, "--stated", "untrained")
    assert code == 2 and "stated to be untrained, but it errs on" in err
    code, out, _ = run(*start, "--score")
    assert code == 0 and out.startswith("Score, not a certificate")
    code, out, _ = run(*start, "--split", "train[400:800]", "--stated", "trained on the first 400 digits")
    assert code == 0
    assert out.startswith("Conditional certificate: if, as stated, the network handed in is trained on the first 400 d")


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
        (["certify", "--verify", __file__], "--verify needs --data"),
        (["certify", "--verify", __file__, "--data", "digits"], "is no JSON"),
        ([*QUICK, "--keep", "float8"], "did you mean 'float"),
        ([*QUICK, "--ledger", __file__], "is no ledger of certificates"),
        (["certify", "--model", "nothing", "--data", "digits"], "expected package.module:factory"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], says: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert says in err and "\n" not in err


NETS = """
from torch import nn


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def planted(**_):
    open("planted", "w").close()
    return mlp()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate of a network of the user's own, in a folder of its own."""
    (tmp_path / "nets_of_my_own.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    made = ["--model", "nets_of_my_own:mlp", "--app-dir", ".", "--data", "digits", "--limit", "300"]
    assert run("certify", *made, "--prior-epochs", "1", "--passes", "1", "--output", "own")[0] == 0
    return tmp_path / "own" / "certificate.json"


@pytest.mark.parametrize(
    "source",
    [
        {"model": "os:system", "model_arg": ["command=touch planted"]},
        {"model": "nets_of_my_own:planted", "app_dir": "."},
        {"model": "flatminima.models:inspect", "model_arg": []},
        {"model": "flatminima.models:mlp", "model_arg": ["widths=x"]},
        {"model": "flatminima.models:mlp", "model_arg": ["widths=(64,1000000000,10)"]},
        {"model": "flatminima.models:mlp", "model_arg": {"widths": 3}},
        {"model": 3},
        {"split": "../../etc"},
        {"scaling": "os:system"},
        {"limit": "ten"},
        [],
        None,
        "flatminima.models:mlp",
    ],
    ids=str,
)
def test_a_record_runs_nothing_and_opens_nothing(source: object, own: Path) -> None:
    """R1: a record is compared; network and data come from the command line."""
    document = json.loads(own.read_text())
    edited = source if not isinstance(source, dict) else document["source"] | source
    own.write_text(json.dumps(document | {"source": edited}))
    code, out, err = run("certify", "--verify", str(own), "--data", "digits")
    assert (code, out) == (2, "") and "\n" not in err
    assert not Path("planted").exists()


def test_mean_and_deviation_are_taken_from_the_record_where_none_is_typed(own: Path) -> None:
    """Plain numbers, said in a line; what is typed wins, and anything else in their place is refused."""
    made = ["--model", "nets_of_my_own:mlp", "--app-dir", ".", "--data", "digits", "--limit", "300"]
    scaled = ["--mean", "0.3", "--std", "0.2"]
    done = run("certify", *made, *scaled, "--prior-epochs", "1", "--passes", "1", "--output", "scaled")
    assert done[0] == 0, done[2]
    record = own.parent.parent / "scaled" / "certificate.json"
    verify = ["certify", "--verify", str(record), *made[:-2]]
    code, _, err = run(*verify)
    assert code == 0 and "from the record, where none is typed: --mean 0.3, --std 0.2" in err
    code, _, err = run(*verify, "--mean", "0.9", "--std", "0.2")
    assert code == 2 and "from the record" not in err  # other samples than those of the bound
    for forged in ("os:system", "0.3;x", ["0.3"], 1e400):
        document = json.loads(record.read_text())
        document["source"]["mean"] = forged
        record.write_text(json.dumps(document))
        assert run(*verify)[0] == 2


def test_names_of_columns_are_taken_from_the_record_and_the_label_is_not(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They choose among the inputs of the file that is typed; what the labels are is what the bound is about."""
    rng = np.random.default_rng(0)
    rows = [f"{a},{b},word,{int(a > 0)},{int(b > 0)}" for a, b in rng.normal(size=(200, 2))]
    Path("table.csv").write_text("\n".join(["a,b,name,outcome,label", *rows]))
    model = ["--model", "flatminima.models:mlp", "--model-arg", "widths=(2,4,2)", "--data", "table.csv"]
    columns, label = ["--columns", "b,a"], ["--label-column", "outcome"]
    done = run("certify", *model, *columns, *label, "--prior-epochs", "1", "--passes", "1", "--output", "table")
    assert done[0] == 0, done[2]
    record = Path("table/certificate.json")
    verify = ["certify", "--verify", str(record), "--data", "table.csv"]
    code, _, err = run(*verify, *label)
    assert code == 0 and "from the record, where none is typed: --columns b,a" in err, err
    code, _, err = run(*verify)
    assert code == 2 and "fingerprint" in err
    assert verify_command._recorded_reading({"label_column": "outcome"}, Reading()) == {}
    assert "the record was made with --label-column outcome; type it if" in capsys.readouterr().err
    for forged in (["a"], "a\nb", "", 3, "a" * 20_000):
        document = json.loads(record.read_text())
        document["source"]["columns"] = forged
        record.write_text(json.dumps(document))
        assert run(*verify, *label)[0] == 2


TWO_INPUTS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, pixels, table):
        return self.head(torch.relu(self.left(pixels) + self.right(table)))

class One(Two):
    def forward(self, batch):
        return super().forward(batch["pixels"], batch["table"])
"""


@pytest.mark.parametrize(("name", "columns"), [("Two", "pixels;table"), ("One", "pixels=pixels;table=table")])
def test_several_inputs_a_sample(name: str, columns: str, tmp_path: Path) -> None:
    """The numbers are those of the library's own call; others verify them; a network that does not fit is named."""
    rng = np.random.default_rng(0)
    pixels, table = rng.normal(size=(120, 3)).astype("f4"), rng.normal(size=(120, 2)).astype("f4")
    np.savez(tmp_path / "data.npz", pixels=pixels, table=table, label=(pixels[:, 0] > table[:, 0]).astype("i8"))
    (tmp_path / "nets_of_two.py").write_text(TWO_INPUTS)
    of = [
        "--data",
        str(tmp_path / "data.npz"),
        "--columns",
        columns,
        "--model",
        f"{tmp_path / 'nets_of_two.py'}:{name}",
    ]
    code, out, err = run(
        "certify", *of, "--prior-epochs", "1", "--passes", "1", "--json", "--output", str(tmp_path / "c")
    )
    assert code == 0 and "120 rows of 3 numbers, with table: rows of 2 numbers" in err, err
    assert json.loads(out)["n"] == 60
    code, out, _ = run("certify", "--verify", str(tmp_path / "c" / "certificate.json"), *of)
    assert code == 0 and "every number agrees" in out
    code, out, _ = run("certify", *of, "--dry-run")
    assert code == 0 and "on 120 samples; nothing was trained" in out
    for more in ([], ["--dry-run"]):
        code, _, err = run("certify", *of[:2], "--columns", "table", *of[4:], *more)
        assert code == 2 and "the network cannot take the inputs (2, 2) float32" in err


def test_a_record_that_contradicts_itself_is_seen_without_network_and_data(own: Path) -> None:
    code, out, err = run("certify", "--verify", str(own))
    assert (code, out) == (2, "") and "--verify needs --data" in err
    for name in ("risk_bound", "monte_carlo_upper", "cross_entropy_bound", "kl", "empirical_risk", "n", "draws"):
        document = json.loads(own.read_text())
        forged = own.with_name("forged.json")
        forged.write_text(json.dumps(document | {name: type(document[name])(document[name] * 0.9)}))
        code, out, _ = run("certify", "--verify", str(forged))
        assert code == 3 and out.startswith("not a certificate: "), name


def test_a_network_of_ones_own_is_typed_to_be_verified(own: Path) -> None:
    typed = ["certify", "--verify", str(own), "--model", "nets_of_my_own:mlp", "--app-dir", ".", "--data", "digits"]
    assert run(*typed)[0] == 0
    weights = own.with_name("weights.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, out, err = run(*typed)
    assert (code, out) == (2, "") and "its SHA-256 differs" in err
    weights.unlink()
    code, _, err = run(*typed)
    assert code == 2 and "no file weights.safetensors beside" in err


def test_the_ledger_counts_across_commands(tmp_path: Path) -> None:
    """The j-th takes delta / (j (j + 1)); the same command again is the same certificate; another list is refused."""
    ledger = ["--ledger", str(tmp_path / "ledger.json"), "--json"]
    quick = [*QUICK, "--epochs", "0", "--layers", "head", *ledger]
    shares = [json.loads(run(*quick, "--sigma", sigma)[1])["evaluations"] for sigma in ("0.01", "0.02", "0.01", "0.03")]
    assert shares == [2, 6, 2, 12]
    code, _, err = run(*quick, "--sigma", "0.04", "--evaluations", "2")
    assert code == 2 and "have taken 0.75 of delta" in err
    code, _, err = run(*quick, "--limit", "300")
    assert code == 2 and "a ledger counts the certificates of one data set" in err
    again = json.loads(run(*quick, "--sigma", "0.05", "--evaluations", "1000")[1])
    assert again["evaluations"] == 1000


def test_in_a_run_folder_the_ledger_is_on(tmp_path: Path) -> None:
    quick = [*QUICK, "--epochs", "0", "--layers", "head", "--json", "--output", str(tmp_path)]
    assert [json.loads(run(*quick, "--sigma", s)[1])["evaluations"] for s in ("0.01", "0.02")] == [2, 6]
    assert len(list(tmp_path.glob("ledger-*.json"))) == 1
    assert json.loads(run(*quick, "--sigma", "0.03", "--ledger", "none")[1])["evaluations"] == 1


@pytest.mark.parametrize("wrong", [2, 40_000_000], ids=str)
@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--prior-fraction", "0"]], ids=["run", "dry", "free"])
def test_labels_are_looked_at_before_they_are_used(wrong: int, more: list[str], tmp_path: Path) -> None:
    """A label of 40,000,000 would be a row of as many zeros and a one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3)).astype("f4")
    label = (x[:, 0] > 0).astype("i8")
    label[7] = wrong
    np.savez(tmp_path / "data.npz", x=x, y=label)
    model = ["--model", "flatminima.models:mlp", "--model-arg", "widths=(3,4,2)", "--data", str(tmp_path / "data.npz")]
    code, out, err = run("certify", *model, "--prior-epochs", "1", "--passes", "1", *more)
    assert (code, out) == (2, "") and f"the label {wrong}" in err and "\n" not in err


@pytest.mark.parametrize("seed", ["99999999999999999999", "9223372036854775808", "-1"])
def test_a_seed_that_64_bits_do_not_hold_is_bad_input(seed: str) -> None:
    for command in ([*QUICK], [*QUICK, "--dry-run"]):
        result = CliRunner().invoke(app, [*command, "--seed", seed])
        assert result.exit_code == 2 and "--seed" in result.stderr and "Traceback" not in result.stderr
