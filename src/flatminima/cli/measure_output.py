"""Results of `flatminima measure`: as plain types, on stdout, and in the folder of --output."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.cli import explain
from flatminima.cli.request import Request
from flatminima.cli.terminal import out, say
from flatminima.cli.torchrun import first
from flatminima.io import json_text

if TYPE_CHECKING:
    from flatminima.core.minimum import Minimum
    from flatminima.diagnosis import Finding
    from flatminima.landscape import Landscape
    from flatminima.measuring import MeasureFunction
    from flatminima.rescaling import Audit
    from flatminima.table import MeasureTable

WRITES = ("measures.json", "report.html")


@dataclass(frozen=True)
class Measured:
    """Results: the table, what is off with it, and what --audit and --explain add.

    Attributes:
        audited: the samples that the audit is of; 0 without one.
    """

    table: MeasureTable
    findings: list[Finding]
    audit: Audit | None
    audited: int
    pictures: dict[str, Landscape]

    def document(self, command: dict[str, Any], minimum: Minimum) -> dict[str, Any]:
        """Everything as plain types."""
        found = self.table.to_dict() | {"command": command, **_machine(minimum)}
        found["diagnosis"] = [asdict(f) for f in self.findings]
        if self.audit is not None:
            found["audit"] = self.audit.to_dict() | {"samples": self.audited}
        if self.pictures:
            found["landscapes"] = explain.document(self.pictures)
        return found

    def show(self, minimum: Minimum, layers: bool) -> None:
        """Print on stdout, for a reader."""
        from flatminima.table import render_layers, render_table

        render_table(self.table, out())
        if layers:
            render_layers(self.table, out())
        for finding in self.findings:
            out().print(f"{finding.severity}: {finding}", markup=False, highlight=False)
        if self.audit is not None:
            from flatminima.rescaling import render_audit

            if self.audited < len(minimum.samples):
                out().print(f"\nThe audit is of {self.audited} samples; --audit is of all.", highlight=False)
            render_audit(self.audit, out())


def keep_finished(
    minimum: Minimum, wanted: list[MeasureFunction], request: Request, output: Path | None, stop: KeyboardInterrupt
) -> None:
    """Write what was measured when a signal came, into the folder where the rest would have gone."""
    from flatminima.measuring import finished

    if output is None or not first():
        return
    table = finished(minimum, wanted)
    if not len(table):
        return
    document = table.to_dict() | {"command": request.document(), **_machine(minimum)}
    save(document | {"diagnosis": []}, {}, output)
    kept = f"{len(table)} of {len(wanted)} measures are in {output / WRITES[0]}"
    if hasattr(stop, "kept"):
        stop.kept = kept
    else:
        say(kept)


def _machine(minimum: Minimum) -> dict[str, Any]:
    """Where it was measured."""
    import torch

    from flatminima.io import versions

    return {
        "device": str(minimum.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def save(document: dict[str, Any], pictures: dict[str, Landscape], output: Path) -> None:
    from flatminima.io import PATIENCE, claimed, write_whole
    from flatminima.report import write_measures

    numbers, page = (output / name for name in WRITES)
    with claimed(output, wait=PATIENCE):
        write_whole(numbers, json_text(document) + "\n")
        explain.write(pictures, output)
        write_measures(document, page)
    say("", f"Report:  {page}", f"Numbers: {numbers}")
    say("Next:    flatminima list says what each measure is; measure another checkpoint to compare")
