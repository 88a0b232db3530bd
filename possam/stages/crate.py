"""A finished study as a Workflow Run RO-Crate: ``python -m possam.stages.crate --scale mini``.

The crate (profiles Process Run, Workflow Run and Workflow RO-Crate) is a folder: tables with their
cards, figures, the report, parameters, lock, rules and licence, and ``ro-crate-metadata.json``,
which says how they hang together. Trainings and evaluations are actions with their run times;
weights and data sets are named by hash, not copied.
"""

import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from possam import __version__
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_directory, read_json

LICENCE = "https://spdx.org/licenses/Apache-2.0"
_PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
_SOURCES = ("requirements.lock", "LICENSE", "NOTICE", "CITATION.cff", "README.md")
_KINDS = {".csv": "text/csv", ".md": "text/markdown", ".tex": "application/x-tex"}
_KINDS |= {".json": "application/json", ".png": "image/png", ".pdf": "application/pdf"}
_KINDS |= {".html": "text/html", ".yaml": "application/yaml", ".smk": "text/x-python"}


def make_crate(project: Project, out: Path) -> Path:
    """Write the crate of every finished table of the scale to the folder ``out``; returns it.

    Raises:
        InputError: ``out`` exists, or no table is finished.
    """
    from rocrate.rocrate import ROCrate

    layout = Layout(project)
    finished = [name for name in project.tables if layout.table(name).is_file()]
    if not finished:
        raise InputError(f"{layout.results}: no finished table; make table1 SCALE={project.name}")
    if out.exists():
        raise InputError(f"{out}: exists already; remove it, or name another folder with --out")
    # The profiles are based on 1.1.
    crate = ROCrate(version="1.1")
    crate.name = f"PosSAM, scale {project.name}: {', '.join(finished)}"
    crate.description = project.scale.title
    named = {"name": "Apache-2.0", "url": LICENCE}
    crate.license = _entity(crate, LICENCE, "CreativeWork", **named)
    profiles = [
        _entity(crate, uri, "CreativeWork", name=name, version=uri.rsplit("/", 1)[1])
        for uri, name in _PROFILES.items()
    ]
    crate.root_dataset["conformsTo"] = profiles
    people = _entity(crate, "#contributors", "Organization", name="The PosSAM contributors")
    crate.root_dataset["author"] = people
    workflow = crate.add_workflow("Snakefile", "Snakefile", main=True, lang="snakemake")
    workflow["name"], workflow["version"] = "PosSAM, from upstream files to tables", __version__
    workflow["license"] = crate.license
    rules = [_file(crate, path) for path in sorted(Path("workflow/rules").glob("*.smk"))]
    workflow["hasPart"] = rules
    program = _entity(crate, "#possam", "SoftwareApplication", name="possam")
    program["softwareVersion"], program["url"] = __version__, "https://arxiv.org/abs/2403.09620"
    files = (project.folder / "scales" / f"{project.name}.yaml", *project.folder.glob("*.yaml"))
    parameters = [_file(crate, path) for path in sorted(files)]
    for name in _SOURCES:
        if Path(name).is_file():
            _file(crate, Path(name))
    data = [*_data(crate, project, layout)]
    actions = [*_actions(crate, layout, program, people)]
    made = [entity for name in finished for entity in _table(crate, layout, name, actions)]
    for path in (layout.report, *sorted((layout.results / "figures").glob("*.*"))):
        if path.is_file() and path.suffix in _KINDS:
            made.append(_file(crate, path))
    study = _entity(crate, "#study", "CreateAction", name=f"The study at scale {project.name}")
    times = [time for action in actions for time in (action["startTime"], action["endTime"])]
    if times:
        study["startTime"], study["endTime"] = min(times), max(times)
    study["instrument"], study["agent"] = workflow, people
    study["object"], study["result"] = [*parameters, *data], made
    study["actionStatus"] = "http://schema.org/CompletedActionStatus"
    crate.root_dataset["mentions"] = [study, *actions]
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(out) as folder:
        crate.write(folder)
    return out


def _entity(crate: Any, identifier: str, kind: str, **properties: Any) -> Any:
    from rocrate.model.contextentity import ContextEntity

    return crate.add(ContextEntity(crate, identifier, {"@type": kind, **properties}))


def _file(crate: Any, path: Path, **properties: Any) -> Any:
    """A file of the checkout, at its own path in the crate."""
    kind = {"encodingFormat": _KINDS[path.suffix]} if path.suffix in _KINDS else {}
    described = {"name": path.name, "contentSize": str(path.stat().st_size), **kind, **properties}
    return crate.add_file(path, path.as_posix(), properties=described)


def _table(crate: Any, layout: Layout, name: str, actions: Sequence[Any]) -> Iterator[Any]:
    """A table's CSV, which names the evaluations that its cells are from, and its other forms."""
    csv = layout.table(name)
    card = read_json(csv.with_suffix(".json"))
    used = {action.id for action in actions}
    behind = [{"@id": f"#{key}"} for key in card["evaluations"] if f"#{key}" in used]
    forms = [csv.with_suffix(suffix) for suffix in (".json", ".md", ".tex")]
    others = [_file(crate, path) for path in forms if path.is_file()]
    about = {"description": card["title"], "license": crate.license}
    table = _file(crate, csv, **about)
    table["subjectOf"] = others
    if behind:
        table["wasDerivedFrom"] = behind
    yield from (table, *others)


def _data(crate: Any, project: Project, layout: Layout) -> Iterator[Any]:
    """Every fetched upstream file, by hash, with its terms."""
    for name in project.assets:
        record = layout.asset_record(name)
        if record.is_file():
            asset = project.assets[name]
            entity = _entity(crate, f"#asset-{name}", "CreativeWork", name=asset.file)
            entity["identifier"] = f"sha256:{read_json(record)['sha256']}"
            entity["usageInfo"] = asset.licence
            yield entity


def _actions(crate: Any, layout: Layout, program: Any, agent: Any) -> Iterator[Any]:
    """An action per training and evaluation, with its run time, seed, commit and hardware."""
    found = sorted(layout.results.glob("runs/*/seed*/provenance.json"))
    found += sorted(layout.results.glob("evaluations/*/seed*/*/*/provenance.json"))
    for path in found:
        done = read_json(path)
        key = path.parent.relative_to(layout.results).as_posix().partition("/")[2]
        result = path.with_name("run.json" if done["stage"] == "train" else "evaluation.json")
        action = _entity(crate, f"#{key}", "CreateAction", name=f"{done['stage']} {key}")
        start = datetime.fromisoformat(done["started"])
        action["startTime"] = start.isoformat()
        action["endTime"] = (start + timedelta(seconds=done["wall_time_s"])).isoformat()
        action["instrument"], action["agent"] = program, agent
        action["description"] = (
            f"{done['wall_time_s']} s on {done['hardware']['cpu']}, seed {done['seed']}, "
            f"commit {done['git']['commit']}"
        )
        action["actionStatus"] = "http://schema.org/CompletedActionStatus"
        if result.is_file():
            action["result"] = [_file(crate, result), _file(crate, path)]
        yield action


def main(arguments: Sequence[str]) -> int:
    """Command line: ``--scale`` (default: mini) and ``--out`` (default: ``crates/<scale>``)."""
    import argparse

    from possam.runtime.errors import PossamError

    parser = argparse.ArgumentParser(prog="python -m possam.stages.crate", description=__doc__)
    parser.add_argument("--scale", default="mini")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    try:
        out = make_crate(Project(given.scale), given.out or Path("crates") / given.scale)
    except PossamError as error:
        print(f"possam: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
