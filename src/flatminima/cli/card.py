"""`flatminima card`: a section for a model's card on the Hub. Writes a file; sends nothing anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flatminima.cli.certificate import recorded
from flatminima.cli.report import read
from flatminima.cli.terminal import say
from flatminima.errors import FlatMinimaError, UsageError

_MEASURES, _CERTIFICATE = "measures.json", "certificate.json"


def card(
    folder: Annotated[Path, typer.Argument(help="Where `measure` or `certify` left its numbers with --output.")],
    output: Annotated[
        Path | None, typer.Option(help="Card to write; one that exists keeps the rest. Default: FOLDER/card.md.")
    ] = None,
) -> None:
    """Write values, errors and certificate as a section of a model card."""
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}; give the --output of an earlier command")
    found = {name: read(folder / name) for name in (_MEASURES, _CERTIFICATE) if (folder / name).is_file()}
    if not found:
        raise UsageError(f"{folder} holds neither {_MEASURES} nor {_CERTIFICATE}; run measure or certify with --output")
    if _CERTIFICATE in found:
        found[_CERTIFICATE] = recorded(found[_CERTIFICATE], folder / _CERTIFICATE)
    from flatminima.io import write_whole
    from flatminima.report.card import card as section, put
    from flatminima.untrusted import Unreadable, read_text

    path = output or folder / "card.md"
    try:
        before = read_text(path) if path.is_file() else ""
        text = put(section(found.get(_MEASURES), found.get(_CERTIFICATE)), before)
    except FlatMinimaError:
        raise
    except Unreadable as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    except Exception as error:  # an edited document may break any part of the section
        reason = str(error) or type(error).__name__
        raise UsageError(f"{folder} holds what this version does not write ({reason}); run the command again") from None
    write_whole(path, text)
    say(f"Card: {path}")
