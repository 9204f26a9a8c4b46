"""`flatminima reproduce` and `flatminima study`: the papers' studies or one's own, and a verdict on each claim.

`reproduce --claims` lists the papers' own sentences with what came of each.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatminima.catalog.choices import SCALES
from flatminima.cli.device import usable
from flatminima.cli.options import MOST_SEED, AsJson, Device, DryRun
from flatminima.cli.studies import finish, plan_table, read_from
from flatminima.cli.terminal import bars, say
from flatminima.errors import FlatMinimaError, UnknownName, UsageError

if TYPE_CHECKING:
    from flatminima.studies import Study

_CLAIM_FAILED = 3
# parameters beside which others would do nothing
_OF_MARKDOWN = ("claims", "study", "paper", "output", "markdown")
_OF_CLAIMS = (*_OF_MARKDOWN, "as_json")
_OF_SHOW = ("show", "study", "every", "file", "redraw", "output", "fail_on_claims", "as_json")

_Scale = Annotated[str, typer.Option(help="smoke, cpu, half or paper.")]
Sets = Annotated[
    str | None, typer.Option("--data", help="Folder with a folder a data set; smoke scale needs none; else the hub.")
]
Output = Annotated[Path, typer.Option(help="Folder for the runs and results.")]
Jobs = Annotated[int, typer.Option("-j", "--jobs", min=1, max=256, help="Processes.")]
Shard = Annotated[str, typer.Option(help="i/N: only every N-th run, from the i-th.")]
Engine = Annotated[str, typer.Option(help="local, or ray.")]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster, or auto; else one is started here.")]
Replication = Annotated[
    int, typer.Option("--seed", min=0, max=MOST_SEED, help="Replication: 1, 2, ... have other seeds.")
]
FailOnClaims = Annotated[
    bool,
    typer.Option("--fail-on-claims", help="Exit with 3 where a claim fails or is contradicted; no control counts."),
]
Show = Annotated[bool, typer.Option("--show", help="Run nothing: table and page of the results there are.")]
Redraw = Annotated[
    bool, typer.Option("--redraw", help="With --show: draw the papers' figures and judge the results anew, too.")
]
Claims = Annotated[bool, typer.Option("--claims", help="Run nothing: the papers' sentences, what each came to.")]
OfPaper = Annotated[str | None, typer.Option("--paper", help="With --claims: of one, W1, W2, WB, N17 or J20.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="With --claims: the whole report, as docs/results.md.")]


def reproduce(
    context: typer.Context,
    study: Annotated[str | None, typer.Argument(help="Id of a study; or --all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every study.")] = False,
    scale: _Scale = "smoke",
    data: Sets = None,
    output: Output = Path("flatminima-studies"),
    jobs: Jobs = 1,
    shard: Shard = "1/1",
    engine: Engine = "local",
    address: Address = None,
    seed: Replication = 0,
    device: Device = None,
    dry_run: DryRun = False,
    show: Show = False,
    redraw: Redraw = False,
    claims: Claims = False,
    paper: OfPaper = None,
    markdown: Markdown = False,
    fail_on_claims: FailOnClaims = False,
    as_json: AsJson = False,
) -> None:
    """Run a paper's study; a killed one goes on where it stopped. Then a verdict on each sentence of the paper."""
    from flatminima import studies

    if claims:
        from flatminima.cli.claims import listed

        if study is not None and study not in studies.STUDIES:
            raise UnknownName("study", study, studies.STUDIES)
        _refuse_others(context, *(("--claims --markdown", _OF_MARKDOWN) if markdown else ("--claims", _OF_CLAIMS)))
        listed(output, paper, study, as_json=as_json, markdown=markdown)
        return
    if paper is not None or markdown:
        raise UsageError("--paper and --markdown go with --claims; add it")
    if redraw and not show:
        raise UsageError("--redraw goes with --show; add it")
    if show:
        _refuse_others(context, "--show", _OF_SHOW)
    if every == (study is not None):
        raise UsageError(f"name one study ({', '.join(studies.STUDIES)}), or give --all")
    if study is not None and study not in studies.STUDIES:
        raise UnknownName("study", study, studies.STUDIES)
    if scale not in studies.SCALES:
        raise UnknownName("scale", scale, studies.SCALES)
    chosen = [s for s in studies.STUDIES.values() if (every and (show or scale in s.scales)) or s.id == study]
    if show:
        _show(output, None if every else chosen[0].id, fail_on_claims, as_json, redraw)
        return
    if dry_run:
        plan_table(chosen, output, scale, jobs, _shard(shard), seed, as_json)
        return
    how = {"scale": scale, "data": data, "jobs": jobs, "shard": _shard(shard), "engine": engine, "address": address}
    _run(chosen, output, how | {"device": usable(device), "seed": seed}, fail_on_claims, as_json)


def own_study(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Python file that defines STUDY.")],
    scale: _Scale = "smoke",
    data: Sets = None,
    output: Output = Path("flatminima-studies"),
    jobs: Jobs = 1,
    shard: Shard = "1/1",
    engine: Engine = "local",
    address: Address = None,
    seed: Replication = 0,
    device: Device = None,
    dry_run: DryRun = False,
    show: Show = False,
    fail_on_claims: FailOnClaims = False,
    as_json: AsJson = False,
) -> None:
    """Run a study of your own, with the runner of the papers' studies. The file's code is executed."""
    chosen = [load(file)]
    if scale not in SCALES:
        raise UnknownName("scale", scale, SCALES)
    if show:
        _refuse_others(context, "--show", _OF_SHOW)
        _show(output, chosen[0].id, fail_on_claims, as_json)
        return
    if dry_run:
        plan_table(chosen, output, scale, jobs, _shard(shard), seed, as_json)
        return
    _say_older(file, output, chosen[0])
    how = {"scale": scale, "data": data, "jobs": jobs, "shard": _shard(shard), "engine": engine, "address": address}
    _run(chosen, output, how | {"device": usable(device), "seed": seed}, fail_on_claims, as_json)


def _refuse_others(context: typer.Context, beside: str, taken: Collection[str]) -> None:
    """Refuse the options on the command line that are not among those taken, as they would do nothing."""
    sources = {p.name: context.get_parameter_source(str(p.name)) for p in context.command.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    found = [max(p.opts, key=len) for p in context.command.params if p.name in given - {*taken}]
    if found:
        raise UsageError(f"{beside} runs nothing, and {', '.join(found)} would do nothing; leave out what is not meant")


def _say_older(file: Path, output: Path, study: Study) -> None:
    """A note where the code is newer than runs that are kept, and taken as they are."""
    runs = sorted((output / study.id / "runs").glob("*.json"))
    older = sum(run.stat().st_mtime < file.stat().st_mtime for run in runs)
    if older:
        say(f"Note: {file.name} is newer than {older} runs, which are kept; to run anew, remove {output / study.id}")


def load(file: Path) -> Study:
    """STUDY of a Python file, imported by its name, so that other processes find it too.

    Raises:
        UsageError: no such file, no name that Python can import, no STUDY in it, or an error in its code; an id that is
            a paper's study's, whose results it would replace.
    """
    import importlib

    from flatminima.studies import STUDIES, Study

    if file.suffix != ".py" or not file.is_file():
        raise UsageError(f"no Python file {file}; name a file that defines STUDY")
    if not file.stem.isidentifier() or file.stem in sys.modules:
        raise UsageError(f"{file.name} cannot be imported as {file.stem!r}; give the file another name")
    sys.path.insert(0, str(file.resolve().parent))
    try:
        module = importlib.import_module(file.stem)
    except FlatMinimaError as error:
        raise UsageError(f"{file}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UsageError(f"{file} failed on import: {type(error).__name__}: {error}") from error
    found = getattr(module, "STUDY", None)
    if not isinstance(found, Study):
        raise UsageError(f"{file} defines no STUDY = flatminima.studies.Study(...)")
    if found.id in STUDIES:
        raise UsageError(f"{file}: {found.id} is the id of a paper's study; give yours another")
    return found


def _run(chosen: Sequence[Study], output: Path, how: dict[str, Any], fail_on_claims: bool, as_json: bool) -> None:
    """Studies one after the other, `how` as `studies.reproduce` takes it; then the table and the page."""
    from flatminima import studies
    from flatminima.studies.result_files import RESULTS, documents
    from flatminima.studies.runner import sources_of

    for s in chosen:  # before hours of runs
        sources_of(s, how["scale"], how["data"])
    written = {output / s.id / place / RESULTS for s in chosen for place in ("", how["scale"])}
    documents(output, besides=written)
    with bars():
        done = [studies.reproduce(s, output, **how) for s in chosen]
    with read_from(output):
        found = finish(output, [(document["id"], document["scale"]) for document in done], as_json, how["shard"])
    failed = any("error" in run for document in done for run in document["runs"])
    if failed or any(document["missing"] and how["shard"] == (1, 1) for document in done):
        raise typer.Exit(1)
    _exit(found, fail_on_claims)


def _show(output: Path, study: str | None, fail_on_claims: bool, as_json: bool, redraw: bool = False) -> None:
    """Table and page of the results there are, of one study or of all."""
    from flatminima import studies
    from flatminima.studies.result_files import documents
    from flatminima.studies.runner import redraw as redrawn

    with read_from(output):
        own = documents(output, study)
        wanted = [(d["id"], d["scale"]) for d in own]
        if not wanted:
            raise UsageError(f"no results in {output}; run a study with --output {output} first")
        for document in own if redraw else ():
            if document["id"] in studies.STUDIES:
                redrawn(studies.STUDIES[document["id"]], output, document)
        found = finish(output, wanted, as_json)
    _exit(found, fail_on_claims)


def show_again(output: Path) -> None:
    """Table and page of every study in the folder, from the numbers there are."""
    _show(output, None, fail_on_claims=False, as_json=False)


def _exit(found: Sequence[dict[str, Any]], fail_on_claims: bool) -> None:
    from flatminima.studies.verdict import FAILED

    claims = [c for document in found for c in document["claims"] if not c["control"]]
    if fail_on_claims and any(c["verdict"] in FAILED for c in claims):
        raise typer.Exit(_CLAIM_FAILED)


def _shard(text: str) -> tuple[int, int]:
    try:
        index, shards = map(int, text.split("/"))
    except ValueError:
        raise UsageError(f"got --shard {text!r}; give i/N, such as 1/4") from None
    return index, shards
