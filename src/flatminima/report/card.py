"""A section for the card of a model on the Hub: values with their errors, what is off, and the certificate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatminima.report.sections import RECORDED, condition_status

_BEGIN, _END = "<!-- flatminima -->", "<!-- /flatminima -->"


def card(measures: Mapping[str, Any] | None, certificate: Mapping[str, Any] | None) -> str:
    """Markdown of a section, between marks by which `put` finds it again.

    Args:
        measures: `measures.json` of `flatminima measure`, or None.
        certificate: `certificate.json` of `flatminima certify` with its statement derived again (see
            `certification.pipeline.derived`), or None.
    """
    parts = [_BEGIN, "## Generalization, measured with flatminima", ""]
    if certificate is not None:
        parts += [f"**{_text(certificate['statement'])}**", ""]
        parts += ["| condition | status | evidence |", "|---|---|---|"]
        parts += [f"| {_text(a['text'])} | {condition_status(a)} | {_text(a['evidence'])} |"
                  for a in certificate["assumptions"]]  # fmt: skip
        parts += ["", RECORDED, ""]
    if measures is not None:
        for finding in measures.get("diagnosis", ()):
            parts.append(f"- **{_text(finding['severity'])}**: {_text(finding['what'])}: {_text(finding['do'])}")
        parts += ["", "| measure | value | ± one standard error | better |", "|---|---|---|---|"]
        parts += [_row(name, e) for name, e in measures["measures"].items()]
        unknown = [(name, e["undefined"]) for name, e in measures["measures"].items() if e["value"] is None]
        if unknown:
            parts += ["", "Undefined: " + "; ".join(f"{_text(name)} ({_text(why)})" for name, why in unknown) + "."]
        said = (
            f"{measures['samples']:,} samples (fingerprint `{measures['data']}`), {measures['parameters']:,} parameters"
        )
        versions = ", ".join(f"{k} {v}" for k, v in measures.get("versions", {}).items())
        parts += ["", f"{said}, loss {_text(measures['loss'])}. {versions}".rstrip()]
        parts += ["", "Scores rank networks trained on the same data; they prove nothing alone."]
    return "\n".join([*parts, _END, ""])


def put(section: str, text: str) -> str:
    """A card with the section in place of the one that it had, or at its end."""
    start, end = text.find(_BEGIN), text.find(_END)
    if 0 <= start < end:
        return text[:start] + section.rstrip("\n") + text[end + len(_END) :]
    return (text.rstrip("\n") + "\n\n" if text.strip() else "") + section


def _row(name: str, e: Mapping[str, Any]) -> str:
    if e["value"] is None:
        return f"| {_text(name)} | – | – | {e['direction']} |"
    exact = (e.get("details") or {}).get("error_of") == "exact"
    error = "exact" if exact else "–" if e["stderr"] is None else f"{e['stderr']:.2g}"
    return f"| {_text(name)} | {e['value']:.5g} | {error} | {e['direction']} |"


def _text(value: Any) -> str:
    """In one line, with nothing that Markdown or HTML would take for its own."""
    line = " ".join(str(value).split())
    for letter in "\\`*_[]<>|#":
        line = line.replace(letter, {"<": "&lt;", ">": "&gt;"}.get(letter, f"\\{letter}"))
    return line
