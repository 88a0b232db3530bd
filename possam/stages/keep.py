"""Stage ``keep``: copies of a study's tables and page for git, seed by seed.

In a fresh clone, a table under its own name would count as made, even if parameters and code have
changed since. So the copies lie in ``results/[scale/]measured/``, and beside the report. A seed is
kept as the cards of its own tables; the tables over all kept seeds are made from them, whatever
machine each was trained on.
"""

import copy
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from possam.params.figures import load_figures
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.reading import choose
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_directory, atomic_write, read_json, write_json
from possam.stages.report import job_records
from possam.stages.table import make_table

_ABOUT_JOB = ("git", "wall_time_s", "peak_memory_mib", "hardware")


def keep(project: Project, *, seed: int | None = None, anew: bool = False) -> None:
    """Keep a finished seed (None: each of the scale's) beside those that are kept, and the page.

    A seed that was kept already is replaced. ``anew``: the seeds that are kept are dropped.
    ``study.json`` says what made each seed: commits, hours, memory, processors.

    Raises:
        InputError: no such seed; something is missing, or was made by code that no commit holds; or
            the seed is of another study than those that are kept. What is kept stays as it is.
    """
    from possam.reporting.kept import SEED_FOLDER, STUDY, kept_seeds, merge_cards
    from possam.reporting.report import ReportFiles, write_report
    from possam.reporting.table_text import markdown
    from possam.reporting.tables import csv_text

    layout, seeds = Layout(project), project.scale.seeds
    if seed is not None:
        path = str(project.folder / "scales" / f"{project.name}.yaml")
        choose("seed", str(seed), [*map(str, seeds)], path, "seeds")
        seeds = (seed,)
    with tempfile.TemporaryDirectory() as temporary:
        for number in [] if anew else kept_seeds(layout.kept):
            name = SEED_FOLDER.format(number)
            shutil.copytree(layout.kept / name, Path(temporary) / name)
        for number in seeds:
            _keep_seed(project, number, Path(temporary) / SEED_FOLDER.format(number))
        every = kept_seeds(Path(temporary))
        studies = {n: read_json(Path(temporary) / SEED_FOLDER.format(n) / STUDY) for n in every}
        summary = _summary(project, studies)
        with atomic_directory(layout.kept) as folder:
            for table in project.tables:
                cards = {n: _card(Path(temporary), n, table) for n in every}
                card = merge_cards(cards) | {"processors": summary["processors_by_seed"]}
                write_json(folder / f"{table}.json", card)
                for suffix, text in ((".md", markdown), (".csv", csv_text)):
                    with atomic_write(folder / f"{table}{suffix}") as stream:
                        stream.write(text(card))
            for number in every:
                name = SEED_FOLDER.format(number)
                shutil.copytree(Path(temporary) / name, folder / name)
            write_json(folder / STUDY, summary)
    figures = {name: layout.figure(name)[2] for name in load_figures(project)}
    files = ReportFiles(
        tables=[layout.kept / f"{name}.json" for name in project.tables],
        figures=[path for path in figures.values() if path.is_file()],
        decisions=project.folder / "decisions.md",
        jobs={name: job for study in studies.values() for name, job in study["jobs"].items()},
    )
    kept = copy.copy(project)
    kept.scale = project.scale.model_copy(update={"seeds": tuple(every)})
    write_report(kept, files, out=layout.kept_report)
    for name, figure in figures.items():
        if not figure.is_file():
            print(f"not on the page, because it is not made: {name}; make it: snakemake {figure}")
    print(f"{layout.kept}: seeds {', '.join(map(str, every))}")


def _card(folder: Path, seed: int, table: str) -> dict[str, Any]:
    from possam.reporting.kept import read_kept_card

    return read_kept_card(folder, table, seed)


def _keep_seed(project: Project, seed: int, folder: Path) -> None:
    """Write the cards of one seed's tables and its ``study.json`` into ``folder``."""
    one = copy.copy(project)
    one.scale = project.scale.model_copy(update={"seeds": (seed,)})
    layout = Layout(one)
    jobs = {}
    for name, path in job_records(one, layout).items():
        if not path.is_file():
            raise InputError(
                f"{path}: missing; make the whole study first, with seed {seed}: make study "
                f"SCALE={project.name}"
            )
        found = read_json(path)
        git = found["git"]
        if git["dirty"] is not False:
            raise InputError(
                f"{path}: git.dirty: made from changes that no commit holds ({git['commit']}); "
                "commit them, remove the folder and make the study again"
            )
        jobs[name] = {key: found[key] for key in _ABOUT_JOB}
    if folder.exists():
        shutil.rmtree(folder)
    for name in project.tables:
        made = Layout(project).table(name).with_suffix(".json")
        card = read_json(made) if made.is_file() else {}
        if card.get("seeds") != [seed]:
            # The table in results/ is of several seeds, or not made yet.
            with tempfile.TemporaryDirectory() as temporary:
                make_table(one, name, out=Path(temporary) / f"{name}.csv")
                card = read_json(Path(temporary) / f"{name}.json")
        write_json(folder / f"{name}.json", card)
    write_json(folder / "study.json", {"seed": seed, "jobs": jobs})


def _summary(project: Project, studies: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Commits, hours, memory and processors of the kept trainings and evaluations."""
    jobs = [job for study in studies.values() for job in study["jobs"].values()]
    by_seed = {
        str(seed): sorted({job["hardware"]["cpu"] for job in study["jobs"].values()})
        for seed, study in studies.items()
    }
    return {
        "scale": project.name,
        "synthetic": project.scale.synthetic,
        "seeds": sorted(studies),
        "jobs": len(jobs),
        "commits": sorted({job["git"]["commit"] for job in jobs}),
        "hours": round(sum(job["wall_time_s"] for job in jobs) / 3600, 2),
        "largest_job_mib": round(max(job["peak_memory_mib"] for job in jobs)),
        "processors": sorted({cpu for found in by_seed.values() for cpu in found}),
        "processors_by_seed": by_seed,
    }
