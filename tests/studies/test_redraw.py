"""`reproduce --show --redraw`: figures and claims of stored results as this version has them."""

import json

from typer.testing import CliRunner

from flatminima.cli.app import app
from flatminima.studies import STUDIES
from flatminima.studies.result_files import documents
from flatminima.studies.runner import judged, reproduce


def test_redraw_judges_the_stored_results_anew(tmp_path):
    """A claim that an older version wrote goes; nothing else of the file changes."""
    study = STUDIES["cohen-edge"]
    reproduce(study, tmp_path)
    file = tmp_path / study.id / "results.json"
    fresh = json.loads(file.read_text())
    file.write_text(json.dumps(fresh | {"claims": [{"claim": "of old", "control": False, "verdict": "holds"}]}))
    (tmp_path / study.id / "figure.svg").unlink()
    command = ["reproduce", "--all", "--show", "--output", str(tmp_path)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert json.loads(file.read_text())["claims"][0]["claim"] == "of old", "without --redraw nothing is rewritten"
    result = CliRunner().invoke(app, [*command, "--redraw"])
    assert result.exit_code == 0, result.output
    assert json.loads(file.read_text()) == fresh and (tmp_path / study.id / "figure.svg").exists()
    (document,) = documents(tmp_path)
    assert document["claims"] == judged(study, document) and fresh["claims"]
