"""The verdicts on the papers' sentences, as Markdown: docs/results.md is what this writes, number by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flatminima.report.verdicts import (
    MEANINGS,
    SCALES_MEAN,
    beside_statistic,
    duration,
    elided,
    here,
    interval,
    joined,
    needed,
    not_come_out,
    overview,
    paper_effect,
    summary,
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
_TABLE = "| sentence | premise | the paper | here | verdict |\n|---|---|---|---|---|\n"


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
    parts = [
        _HEAD.format(summary=said, overview=_overview(findings, titles)),
        _READING.format(meanings=_defined(MEANINGS), scales=scales, command=_COMMAND),
        _contradicted(findings),
        _of_own_numbers(findings),
    ]
    for paper, title in titles.items():
        own = [f for f in findings if f["paper"] == paper]
        if own:
            parts.append(_paper(own, title))
    return "\n".join([*parts, _runs(documents)])


def _defined(meanings: Mapping[str, str]) -> str:
    return "\n".join(f"- *{word.capitalize()}*: {meaning}." for word, meaning in meanings.items())


def _overview(findings: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    words, rows = overview(findings, titles)
    lines = [f"| document | {' | '.join(words)} |", "|---|" + "---|" * len(words)]
    lines += [f"| {title} | {' | '.join(map(str, counts))} |" for title, counts in rows]
    return "\n".join(lines)


def _contradicted(findings: Sequence[Mapping[str, Any]]) -> str:
    """What does not come out, in short; sentences that one number decides stand together."""
    rows = [f"- {'; '.join(_quoted(f) for f in same)}: {_cell(number)}.\n" for number, same in not_come_out(findings)]
    return "## What does not come out\n\n" + ("".join(rows) or "Nothing.\n")


def _of_own_numbers(findings: Sequence[Mapping[str, Any]]) -> str:
    """Sentences against the numbers that the papers print beside them."""
    own = [f for f in findings if f["own_numbers"]]
    rows = "".join(f"- {_quoted(f)}: {_cell(_numbers(f))}. {f['verdict'].capitalize()}.\n" for f in own)
    return "## What the papers' evidence could not show\n\n" + (
        "Decided by the papers' own tables and settings, without a run of ours:\n\n" + rows if rows else "Nothing.\n"
    )


def _paper(findings: Sequence[Mapping[str, Any]], title: str) -> str:
    by_runs = [f for f in findings if f["scale"] not in (None, "calculation")]
    calculated = [f for f in findings if f["scale"] == "calculation"]
    missing = [f for f in findings if f["verdict"] == "not tried"]
    stated = [f for f in findings if f["verdict"] == "stated"]
    parts = [f"## {title}\n"]
    if by_runs:
        parts.append("### By runs\n\n" + _TABLE + "".join(map(_row, by_runs)))
    if calculated:
        rows = "".join(f"| {_quoted(f)} | {_cell(_numbers(f))} | {f['verdict']} |\n" for f in calculated)
        parts.append("### By calculation\n\n| sentence | numbers | verdict |\n|---|---|---|\n" + rows)
    if missing:
        rows = "".join(f"- {_quoted(f)}: needs {f['needs'] or 'runs that no scale here has'}.\n" for f in missing)
        parts.append("### Not tried\n\n" + rows)
    if stated:
        rows = "".join(f"- {_quoted(f)}{_noted(f)}.\n" for f in stated)
        parts.append("### Stated\n\nAbout the paper itself, or what it expects: no run can decide them.\n\n" + rows)
    return "\n".join(parts)


def _row(finding: Mapping[str, Any]) -> str:
    verdict = finding["scales"][finding["scale"]]
    told = joined([here(verdict), *beside_statistic(verdict, finding)])
    premise = "; ".join(finding["premise"]) or "-"
    margin = paper_effect({**finding, "effect": finding["effect"] or "no number"})
    shown = f"{told} ({finding['tried']}, {finding['scale']}{_elsewhere(finding)})"
    return f"| {_quoted(finding)} | {_cell(premise)} | {_cell(margin)} | {_cell(shown)} | {finding['verdict']} |\n"


def _elsewhere(finding: Mapping[str, Any]) -> str:
    """What a sentence came to at the scales that do not count."""
    others = [(scale, v) for scale, v in finding["scales"].items() if scale not in (finding["scale"], "calculation")]
    said = ((f"at {scale} scale {v['verdict']}", interval(v)) for scale, v in others)
    return "".join(f"; {word}, {value}" if value else f"; {word}" for word, value in said)


def _numbers(finding: Mapping[str, Any]) -> str:
    said: str = finding["scales"]["calculation"]["note"]
    return ". ".join(part.rstrip(".") for part in (said, finding["note"], needed(finding)) if part)


def _noted(finding: Mapping[str, Any]) -> str:
    return f": {_cell(finding['note'].rstrip('.'))}" if finding["note"] else ""


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
    """The studies, their scales and deviations."""
    lines = [
        "## The runs\n",
        "| study | scale | runs | time, with others beside it | deviations from the paper |",
        "|---|---|---|---|---|",
    ]
    for d in documents:
        done = sum("result" in run for run in d["runs"])
        missing = f", {d['missing']} missing" if d["missing"] else ""
        missing += f", {d['older']} of an older version's configurations" if d.get("older") else ""
        cost = f"that of `{d['shares']}`" if d.get("shares") else _cost(d)
        differ = "; ".join(d.get("deviations") or [])
        said = d["reduction"] + (f". Of the printed settings: {differ}" if differ else "")
        lines.append(f"| `{d['id']}` | {d['scale']} | {done}{missing} | {cost} | {_cell(said)} |")
    return "\n".join(lines) + "\n"
