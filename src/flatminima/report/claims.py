"""The verdicts on the papers' sentences, as Markdown: docs/results.md is what this writes, number by number."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from flatminima.report.verdicts import (
    AGAINST,
    MARKS,
    MEANINGS,
    SCALES_MEAN,
    beside_statistic,
    disagree,
    disagreements,
    duration,
    elided,
    here,
    interval,
    joined,
    needed,
    overview,
    paper_effect,
    summary,
    trial_lines,
)

_COMMAND = "flatminima reproduce --claims --markdown --output results/studies > docs/results.md"
_HEAD = """# The papers' claims, tried again

Every sentence of the papers that claims something, quoted, with what the runs of [the studies](studies.md) say of it.

{summary}

{overview}
"""
_READING = """## How to read it

{meanings}

That two things are alike, or that something does not predict, is a test of equivalence within a margin: a lack of data
never confirms it. Runs are at one of three scales, and the largest that decides is shown; how each deviates from the
papers is [below](#the-runs):

{scales}

This page is written by a command from the committed results, and so is every number of a verdict; what a note says of
other runs, and what is needed, was written by hand in the registry.

```sh
{command}
flatminima reproduce --all --show --output results/studies          # the page with the figures
flatminima reproduce --claims --paper N17 --output results/studies  # one paper, in the terminal
```
"""
_RUN_TABLE = "| sentence | premise | the paper | here | verdict |\n|---|---|---|---|---|\n"
_CALCULATED_TABLE = "| sentence | numbers | verdict |\n|---|---|---|\n"
_SHORT = 120  # characters of a verdict's note that a cell takes; a longer one is put below the table
# what comes out, what does not, and what stays open, in this order; the papers are in that of the catalogue
_PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "What is reproduced": ("reproduced",),
        "What does not come out": AGAINST,
        "What is not decided": ("premise not met", "not informative"),
    }
)
_IN_SHORT = ("reproduced", "premise not met")  # of trials that disagree, those that are only counted
# of which a note says that the paper's own experiment or proof could not show it, whatever came out
NOT_SHOWN = (
    "w1-lr-consistent",
    "w1-why-better",
    "n-scaled-kl",
    "j-frobenius-inaccurate",
    "j-theorem-1-holds",
    "j-t2-densenet",
)


def claims_page(
    findings: Sequence[Mapping[str, Any]], documents: Sequence[Mapping[str, Any]], titles: Mapping[str, str]
) -> str:
    """The page.

    Args:
        findings: as `claims.Finding.to_dict` has them. documents: the results.json that they are of.
        titles: of the papers, by key.

    Returns:
        Markdown, ending in a newline.
    """
    said = "\n".join(f"- {sentences}" for sentences in summary(findings))
    scales = "\n".join(f"- `{word}`: {meaning}." for word, meaning in SCALES_MEAN.items() if word != "counts")
    meanings = _defined({**MEANINGS, **MARKS})
    return "\n".join(
        [
            _HEAD.format(summary=said, overview=_overview(findings, titles)),
            _READING.format(meanings=meanings, scales=scales, command=_COMMAND),
            *(_came(heading, words, findings, titles) for heading, words in _PARTS.items()),
            _not_shown(findings),
            _apart(findings),
            _not_tried(findings, titles),
            _stated(findings, titles),
            _runs(documents),
        ]
    )


def _defined(meanings: Mapping[str, str]) -> str:
    return "\n".join(f"- *{word.capitalize()}*: {meaning}." for word, meaning in meanings.items())


def _overview(findings: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    words, rows = overview(findings, titles)
    lines = [f"| document | {' | '.join(words)} |", "|---|" + "---|" * len(words)]
    lines += [f"| {title} | {' | '.join(map(str, counts))} |" for title, counts in rows]
    return "\n".join(lines)


def _by_paper(
    findings: Sequence[Mapping[str, Any]], words: Collection[str], titles: Mapping[str, str]
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The sentences of the verdicts named, by title of their papers; papers without any are left out."""
    own = (
        (title, [f for f in findings if f["paper"] == key and f["verdict"] in words]) for key, title in titles.items()
    )
    return [(title, found) for title, found in own if found]


def _came(
    heading: str, words: Collection[str], findings: Sequence[Mapping[str, Any]], titles: Mapping[str, str]
) -> str:
    """The sentences that came to some verdicts, by paper, runs before calculations; their notes below each table."""
    parts = [f"## {heading}\n"]
    for title, own in _by_paper(findings, words, titles):
        parts.append(f"### {title}\n")
        by_runs = [f for f in own if f["scale"] != "calculation"]
        if by_runs:
            parts.append("By runs:\n\n" + _RUN_TABLE + "".join(map(_row, by_runs)) + _noted(by_runs, _notes))
        calculated = [f for f in own if f["scale"] == "calculation"]
        if calculated:
            rows = "".join(f"| {_quoted(f)} | {_cell(_number(f))} | {_word(f)} |\n" for f in calculated)
            parts.append("By calculation:\n\n" + _CALCULATED_TABLE + rows + _noted(calculated, _remarks))
    return "\n".join(parts if len(parts) > 1 else [*parts, "Nothing.\n"])


def _not_shown(findings: Sequence[Mapping[str, Any]]) -> str:
    """Sentences against the numbers that the papers print beside them, and those that no such evidence could show."""
    own = [f for f in findings if f["own_numbers"] and f["scale"] == "calculation"]
    rows = "".join(f"- {_quoted(f)}: {_cell(_number(f))}. {f['verdict'].capitalize()}.\n" for f in own)
    more = [f for f in findings if f["id"] in NOT_SHOWN and f["note"]]
    noted = "".join(f"- {_quoted(f)}: {_cell(_without_changes(f))}. {f['verdict'].capitalize()}.\n" for f in more)
    parts = []
    if rows:
        parts.append("Decided by the papers' own tables and settings, without a run of ours:\n\n" + rows)
    if noted:
        parts.append(
            "What their own experiments or proofs could not show, whatever came out here, by the registry's notes:\n\n"
            + noted
        )
    return "## What the papers' evidence could not show\n\n" + ("\n".join(parts) or "Nothing.\n")


def _apart(findings: Sequence[Mapping[str, Any]]) -> str:
    """Sentences that two scales decide differently."""
    rows = "".join(f"- {_quoted(f)}: {_cell(said)}.\n" for f, said in disagreements(findings))
    return "## Where the scales disagree\n\n" + (rows or "Nowhere.\n")


def _not_tried(findings: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    parts = ["## Not tried\n"]
    for title, own in _by_paper(findings, ("not tried",), titles):
        rows = "".join(f"- {_quoted(f)}: needs {f['needs'] or 'runs that no scale here has'}.\n" for f in own)
        parts.append(f"### {title}\n\n{rows}")
    return "\n".join(parts if len(parts) > 1 else [*parts, "Nothing.\n"])


def _stated(findings: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    parts = ["## Stated\n\nAbout the papers themselves, or what they expect: no run can decide them.\n"]
    for title, own in _by_paper(findings, ("stated",), titles):
        rows = "".join(f"- {_quoted(f)}{f': {_cell(_ended(f))}' if f['note'] else ''}.\n" for f in own)
        parts.append(f"### {title}\n\n{rows}")
    return "\n".join(parts)


def _row(finding: Mapping[str, Any]) -> str:
    verdict = finding["scales"][finding["scale"]]
    said, *_ = beside_statistic(verdict, finding)
    told = joined([here(verdict), said if len(said) <= _SHORT else ""])
    premise = "; ".join(finding["premise"]) or "-"
    margin = paper_effect({**finding, "effect": finding["effect"] or "no number"})
    shown = f"{told} ({finding['tried']}, {finding['scale']}{_elsewhere(finding)})"
    return f"| {_quoted(finding)} | {_cell(premise)} | {_cell(margin)} | {_cell(shown)} | {_word(finding)} |\n"


def _word(finding: Mapping[str, Any]) -> str:
    return f"{finding['verdict']}, revised" if finding.get("revised") else str(finding["verdict"])


def _notes(finding: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What a reader must know beside a row, and a line for each trial where they disagree."""
    verdict = finding["scales"][finding["scale"]]
    said, *more = beside_statistic(verdict, finding)
    lines = trial_lines(verdict) if disagree(verdict) else []
    shown = [f"{name} {came}" for name, came in lines if not came.endswith(_IN_SHORT)]
    counted = ((word, sum(came.endswith(word) for _, came in lines)) for word in _IN_SHORT)
    shown += [f"{n} trial{'s' if n > 1 else ''}: {word}" for word, n in counted if n]
    return joined(["" if len(said) <= _SHORT else said, *more, finding["note"]]), shown


def _remarks(finding: Mapping[str, Any]) -> tuple[str, list[str]]:
    return joined([finding["note"], needed(finding)]), []


def _noted(findings: Sequence[Mapping[str, Any]], notes: Callable[[Mapping[str, Any]], tuple[str, list[str]]]) -> str:
    """The notes to the rows of a table, as a list below it."""
    told = [(f["id"], *notes(f)) for f in findings]
    rows = [
        f"- `{name}`: {_cell(note) or 'its trials'}.\n" + "".join(f"    - {_cell(line)}.\n" for line in lines)
        for name, note, lines in told
        if note or lines
    ]
    return "\nNotes:\n\n" + "".join(rows) if rows else ""


def _elsewhere(finding: Mapping[str, Any]) -> str:
    """What a sentence came to at the scales that do not count."""
    others = [(scale, v) for scale, v in finding["scales"].items() if scale not in (finding["scale"], "calculation")]
    said = ((f"at {scale} scale {v['verdict']}", interval(v)) for scale, v in others)
    return "".join(f"; {word}, {value}" if value else f"; {word}" for word, value in said)


def _number(finding: Mapping[str, Any]) -> str:
    return str(finding["scales"]["calculation"]["note"]).rstrip(".")


def _ended(finding: Mapping[str, Any]) -> str:
    return str(finding["note"]).rstrip(".")


def _without_changes(finding: Mapping[str, Any]) -> str:
    """The note of a sentence up to where it tells of changes after a result was seen."""
    return re.split(r"\.? ?It(?:s [\w, ]+)? w(?:as|ere) chosen anew", _ended(finding))[0] or _ended(finding)


def _quoted(finding: Mapping[str, Any]) -> str:
    figure = f", {finding['figure']}" if finding["figure"] and finding["figure"] not in finding["where"] else ""
    reads = f" [{finding['reads'].rstrip('.')}]" if finding["reads"] else ""
    return _cell(f'"{elided(finding["quote"])}"{reads} ({finding["where"]}{figure}; `{finding["id"]}`)')


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ").replace("<", "&lt;")


def _cost(document: Mapping[str, Any]) -> str:
    """The time on the clock, which other work made longer, and in brackets the processor's, where runs recorded it."""
    of_cores = [run.get("core_seconds") for run in document["runs"] if "result" in run]
    recorded = of_cores and None not in of_cores
    return duration(document["seconds"]) + (f" ({sum(of_cores) / 3_600:.2g} core-hours)" if recorded else "")


def _runs(documents: Sequence[Mapping[str, Any]]) -> str:
    """The studies and their scales, and below them how each deviates."""
    lines = ["## The runs\n", "| study | scale | runs | time, with others beside it |", "|---|---|---|---|"]
    apart = []
    for d in documents:
        done = sum("result" in run for run in d["runs"])
        missing = f", {d['missing']} missing" if d["missing"] else ""
        missing += f", {d['older']} of an older version's configurations" if d.get("older") else ""
        cost = f"that of `{d['shares']}`" if d.get("shares") else _cost(d)
        differ = "; ".join(d.get("deviations") or [])
        said = d["reduction"] + (f". Of the printed settings: {differ}" if differ else "")
        lines.append(f"| `{d['id']}` | {d['scale']} | {done}{missing} | {cost} |")
        apart.append(f"- `{d['id']}`, {d['scale']}: {_cell(said)}.")
    return "\n".join([*lines, "\nHow they deviate from the papers, whose value is in brackets:\n", *apart]) + "\n"
