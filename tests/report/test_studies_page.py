"""The page of the studies: each number under its own study, each word explained, each link with an end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flatminima.report.claims import NOT_SHOWN, claims_page
from flatminima.report.studies import write_studies
from flatminima.report.verdicts import elided, here, not_come_out, overview, summary
from flatminima.studies import STUDIES, index
from flatminima.studies.claims import Claim, Finding, Trial, claims as registered, papers
from flatminima.studies.result_files import documents
from flatminima.studies.verdict import CONTRADICTED, REPRODUCED, SMALLER, UNMET, TrialVerdict, Verdict

RESULTS = Path(__file__).parents[2] / "results" / "studies"
LONGEST_CELL = 450  # characters, of which a quotation has up to 370
LEFT_OUT = re.compile(r"<style.*?</style>|data:image[^\"]*", re.DOTALL)


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))


@pytest.fixture(scope="module")
def whole() -> tuple[list[dict[str, Any]], list[Finding]]:
    return index.together(documents(RESULTS))


@pytest.fixture(scope="module")
def page(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    for study in RESULTS.iterdir():
        if study.is_dir():
            (folder / study.name).symlink_to(study)  # where the figures are
    found = write_studies(whole[0], folder, "flatminima", [f.to_dict() for f in whole[1]])
    return LEFT_OUT.sub("", found.read_text(encoding="utf-8"))


def claim(name: str = "x-one", quote: str = "y rises", **more: Any) -> Claim:
    trials = tuple(Trial(study, "rises", "y", x="x") for study in ("jia-batch", "jia-confusion"))
    return Claim(name, "J20", quote, "sec. 1", **({"trials": trials} | more))


def decided(study: str, statistic: float, word: str = CONTRADICTED, **more: Any) -> Verdict:
    told: dict[str, Any] = {"measured": "y: slope along x", "id": "x-one", "where": "sec. 1", "study": study}
    told |= {"low": statistic - 1, "high": statistic + 1}
    return Verdict("y rises", word, statistic=statistic, **(told | more))


def document(study: str = "jia-batch", **more: Any) -> dict[str, Any]:
    empty = {"paper": "-", "title": "-", "reduction": "-", "missing": 0, "runs": [], "seconds": 60.0, "versions": {}}
    return {"id": study, "scale": "cpu", "claims": [], **empty, **more}


def shown(
    tmp_path: Path, found: list[Finding], alone: list[Verdict], monkeypatch: pytest.MonkeyPatch, **more: Any
) -> str:
    """The page of one study, where the claims came to `found` and its own runs say `alone`."""
    monkeypatch.setattr(index, "evaluate", lambda documents: found)
    monkeypatch.setattr(index, "of_study", lambda document: alone)
    judged, findings = index.together([document(**more)])
    path = write_studies(judged, tmp_path, "", [f.to_dict() for f in findings])
    return LEFT_OUT.sub("", path.read_text(encoding="utf-8"))


def test_a_row_that_another_study_decides_names_it_and_has_its_own_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Finding(claim(), {"cpu": decided("jia-confusion", 7.25)})]
    html = shown(tmp_path, found, [decided("jia-batch", -3.5)], monkeypatch)
    row = html[html.index('id="jia-batch-cpu"') :]
    assert 'decided by <a href="#claim-x-one">jia-confusion</a>' in row
    assert "These runs alone: y: slope along x -3.5" in row and "7.25" not in row
    assert 'class="counts">counts' not in row and 'id="claim-x-one"' not in row


def test_a_row_of_the_study_that_decides_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the scale that decides, and there alone."""
    one = decided("jia-batch", 7.25)
    for scales, counts in (({"cpu": one}, 1), ({"cpu": one, "paper": one}, 0)):
        html = shown(tmp_path, [Finding(claim(), scales)], [], monkeypatch)
        row = html[html.index('id="jia-batch-cpu"') :]
        assert "7.25" in row and row.count('class="counts">counts') == counts == row.count('id="claim-x-one"')
        assert "decided by" not in row


def test_a_row_has_what_the_registry_says_of_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"note": "A margin of 2.", "why": "half of it", "reads": "Of the error.", "needs": "a week", "effect": "9"}
    premises = [("", 4), ("train error at most 0", 5)]
    for premise, columns in premises:
        found = Finding(
            claim(**said), {"cpu": decided("jia-batch", 1.0, "not informative", premise=premise, hours=3.0)}
        )
        html = shown(tmp_path, [found], [], monkeypatch)
        table = html[html.index('id="jia-batch-cpu"') :]
        text = text_of(table)
        assert "&ldquo;... y rises ...&rdquo; [Of the error]" in text and "9. What counts: half of it" in text
        assert "needs a week" in text and "NoteA margin of 2." in text, "the note is folded"
        assert "core-hours more" not in text, "one cost, not two"
        assert table[: table.index("</thead>")].count("<th>") == columns, "a column that is empty is not shown"


def test_rows_against_the_paper_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (REPRODUCED, "not informative", SMALLER, CONTRADICTED)
    found = [Finding(claim(f"x-{i}"), {"cpu": decided("jia-batch", 1.0, w, id=f"x-{i}")}) for i, w in enumerate(words)]
    html = shown(tmp_path, found, [], monkeypatch)
    rows = re.findall(
        r'<td class="name [^"]*">([a-z ]+)', html[html.index('id="jia-batch-cpu"') : html.index("<details")]
    )
    assert [row.strip() for row in rows] == [CONTRADICTED, SMALLER, REPRODUCED, "not informative"]


def test_what_does_not_come_out_is_above_the_navigation_and_leads_to_its_row(page: str) -> None:
    assert page.index('id="against"') < page.index('id="words"') < page.index("<nav") < page.index('id="jia-batch"')
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    links = re.findall(r'href="#([^"]*)"', page)
    assert sum(link.startswith("claim-") for link in links) > 20 and set(links) <= set(ids)


def test_each_sentence_that_is_tried_counts_once(page: str, whole: Any) -> None:
    tried = [f for f in whole[1] if f.scale is not None]
    assert page.count('class="counts">counts') == len(tried)
    assert {m for m in re.findall(r'id="claim-([^"]*)"', page)} == {f.claim.id for f in tried}


def test_every_word_of_a_verdict_is_explained(page: str) -> None:
    terms = re.findall(r"<dt>([^<]*)</dt>", page)
    assert set(terms) >= {"reproduced", "contradicted", "smaller than claimed", "premise not met", "not informative"}
    assert set(terms) >= {"stated", "cpu", "half", "paper", "counts"}


def test_every_figure_says_what_is_drawn(page: str) -> None:
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert len(figures) > 20
    for figure in figures:
        assert re.search(r"<figcaption>.*(seed|data set)s?( a point)?\.</figcaption>", figure), text_of(figure)
        assert re.search(r'alt="Figure of [\w-]+, \w+ scale\. [A-Z][^"]{30,}"', figure)
        assert "<svg" not in figure or re.search(
            r'style="min-width: \d+px; max-width: \d+px"', figure
        )  # else a picture


def test_sentences_that_one_test_decides_count_once() -> None:
    """Trials that differ in words or in the paper's effect are one test; another quantity is another."""
    one = {"cpu": decided("jia-batch", 1.0)}
    (trial, other) = claim().trials
    findings = [
        Finding(claim("x-1"), one),
        Finding(claim("x-2", trials=(Trial(**{**vars(trial), "said": "other words", "effect": 2.0}), other)), one),
        Finding(claim("x-3", trials=(Trial(**{**vars(trial), "y": "z"}), other)), one),
        Finding(claim("x-4", trials=(), check="a"), {"calculation": decided("", 1.0)}),
        Finding(claim("x-5", trials=(), check="a"), {"calculation": decided("", 1.0)}),
        Finding(claim("x-6", trials=()), {}),
    ]
    told = [f.to_dict() for f in findings]
    said = " ".join(summary(told))
    assert "3 by runs, in 2 tests: 3 contradicted (2)." in said
    assert "2 by calculation, in 1 test: 2 contradicted (1)." in said
    defined = [f | {"verdict": "reproduced", "scale": "calculation", "definition": i < 2} for i, f in enumerate(told)]
    defined[0]["verdict"] = "contradicted"
    assert "1 of the reproduced hold by definition" in " ".join(summary(defined)), "of the reproduced ones"
    words, rows = overview(told, {"J20": "paper"})
    assert words[-1] == "distinct tests" and rows == [("paper", [5, 1, 3])]
    assert "| paper | 5 | 1 | 3 |" in claims_page(told, [], {"J20": "paper"})


def test_what_was_changed_and_what_is_open_is_counted_by_runs_and_by_calculation() -> None:
    """Calculations, of which few are open, would hide how many of the sentences that networks decide are."""

    def told(word: str, by: str = "cpu", revised: bool = False, **more: Any) -> dict[str, Any]:
        found = Finding(claim(revised=revised, **more), {by: decided("jia-batch", 1.0, word)}).to_dict()
        return found | {"scale": by, "verdict": word}

    by_runs = [told(REPRODUCED, revised=True), told(REPRODUCED), told("not informative"), told(UNMET)]
    calculated = [told(REPRODUCED, "calculation") for _ in range(5)]
    cited = [told("not informative", revised=True, kind="cited")]
    said = summary([*by_runs, *calculated, *cited])
    own = "4 are tried by runs: 1 (25 %) not informative and 1 (25 %) premise not met. With calculations they are 9: "
    assert any(own + "1 (11 %) not informative and 1 (11 %) premise not met." in line for line in said)
    changed = "2 of the 5 by runs (40 %; 1 of 2 reproduced, 0 of 1 premise not met, 1 of 2 not informative)"
    assert any(changed in line and "0 of the 5 by calculation (0 %" in line for line in said)
    assert not any("changed after" in line for line in summary(by_runs[1:])), "none was"


def test_a_row_of_several_trials_has_each_folded_and_a_changed_one_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = tuple(
        TrialVerdict("jia-batch", "cifar10", name, "y", "y: slope", word, 1.0, 0.5, 1.5, 0.01)
        for name, word in (("CNN", REPRODUCED), ("VGG", CONTRADICTED))
    )
    verdict = decided("jia-batch", 1.0, trials=parts)
    html = shown(tmp_path, [Finding(claim(revised=True), {"cpu": verdict})], [], monkeypatch)
    row = html[html.index('id="jia-batch-cpu"') :]
    assert (
        "<summary>The 2 trials</summary>" in row and "cifar10, VGG, y: slope +1 (+0.5 to +1.5), p 0.01: contra" in row
    )
    assert 'class="counts">revised' in row and 'class="counts">counts' in row


def test_the_report_says_what_came_out_first_and_lists_trials_that_disagree() -> None:
    words = (REPRODUCED, SMALLER, CONTRADICTED, "not informative")
    parts = {
        word: TrialVerdict("jia-batch", "d", f"net {i}", "y", "y: slope along x", word, float(i), i - 1, i + 1, 0.01)
        for i, word in enumerate(words)
    }
    apart = decided("jia-batch", 2.0, trials=(parts[REPRODUCED], parts[CONTRADICTED]))
    alike = decided("jia-batch", 3.0, REPRODUCED, trials=(parts[REPRODUCED], parts[REPRODUCED]))
    other = decided("jia-batch", 0.5, SMALLER)
    findings = [
        Finding(claim("x-apart", note="A note.", revised=True), {"half": apart}),
        Finding(claim("x-alike", why="one point"), {"half": alike, "cpu": other}),
        Finding(claim("x-number", trials=(), check="a"), {"calculation": decided("", 1.0, REPRODUCED, note="4 of 4")}),
    ]
    page = claims_page([f.to_dict() for f in findings], [], {"J20": "The paper"})
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings[:4] == ["How to read it", "What is reproduced", "What does not come out", "What is not decided"]
    came, failed = (page.split(f"## {heading}\n")[1].split("\n## ")[0] for heading in headings[1:3])
    assert came.index("x-alike") < came.index("By calculation:") < came.index("x-number") and "x-apart" not in came
    assert "What counts: one point" in came and "0.5" in came, "the other scale's number"
    assert "| contradicted, revised |" in failed and "    - d, net 2, y: slope along x +2" in failed
    assert "    - 1 trial: reproduced." in failed and "- `x-apart`: A note" in failed and "trial" not in came
    assert "`x-alike`): half reproduced, +3 (+2 to +4); cpu smaller than claimed" in page.split("scales disagree")[1]


def test_no_cell_of_the_report_is_too_long_to_read(whole: Any) -> None:
    """Notes stand below their table: one in a cell made it of 1,395 characters."""
    titles = {key: found.title for key, found in papers().items()}
    report = claims_page([f.to_dict() for f in whole[1]], whole[0], titles)
    cells = [cell for line in report.splitlines() if line.startswith("|") for cell in line.strip("| ").split(" | ")]
    assert len(cells) > 1_000 and [cell for cell in cells if len(cell) > LONGEST_CELL] == []
    for f in whole[1]:
        assert report.count(f"; `{f.claim.id}`)") >= 1, f.claim.id


def test_what_the_papers_could_not_show_is_of_the_registry_and_has_a_reason() -> None:
    about = {c.id: c for c in registered()}
    assert [name for name in NOT_SHOWN if not about[name].note] == []


def test_a_quotation_has_dots_where_it_is_cut() -> None:
    assert (
        elided("Y rises.") == "Y rises." and elided("Y rises") == "Y rises ..." and elided("y rises.") == "... y rises."
    )
    assert elided('"Y rises."') == '"Y rises."'
    assert [len(same) for _, same in not_come_out([])] == []


def test_a_number_of_one_run_has_no_sign() -> None:
    told = decided("", 0.0, measured="share: worst run", low=0.0, high=0.25)
    assert here(told.to_dict()) == "share: worst run 0 (0 to 0.25)"
    assert here(decided("", 0.5).to_dict()) == "y: slope along x +0.5 (-0.5 to +1.5)"


def test_runs_that_two_studies_share_cost_once(tmp_path: Path) -> None:
    """Table 2's study reads Table 1's runs; provenance has all versions that computed something."""
    both = [
        document("jia-regularizer", seconds=9_000.0, versions={"torch": "1"}, missing=3),
        document("jia-regularized-metric", seconds=9_000.0, versions={"torch": "2"}),
    ]
    judged, _ = index.together(both)
    assert [d["shares"] for d in judged] == [None, "jia-regularizer"]
    assert index.together(both[1:])[0][0]["shares"] is None
    text = text_of(write_studies(judged, tmp_path).read_text(encoding="utf-8"))
    assert "cost2.5 h" in text and "torch1, 2" in text and "those of jia-regularizer" in text
    listed = len(STUDIES["jia-regularizer"].list_runs("cpu"))
    assert f"0 runs, {listed} missing or failed" in text, "what this version lists, and not what the file says"
    row = f"| `jia-regularized-metric` | cpu | 0, {listed} missing | that of `jia-regularizer` |"
    assert row in claims_page([], judged, {})
