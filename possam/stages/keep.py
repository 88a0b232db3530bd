"""Stage ``keep``: copies of a study's tables and page for git.

In a fresh clone, a table under its own name would count as made, even if parameters and code have
changed since. So the copies lie in ``results/[scale/]measured/``, and beside the report.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_directory, atomic_path, read_json, write_json
from possam.stages.report import job_records

SUFFIXES = (".csv", ".md", ".json")


def keep(project: Project) -> None:
    """Copy every table (CSV, Markdown, card) and the report; ``study.json`` says what made them.

    Raises:
        InputError: something is missing, or was made by code that no commit holds.
    """
    layout = Layout(project)
    csvs = [layout.table(name) for name in project.tables]
    tables = [path.with_suffix(suffix) for path in csvs for suffix in SUFFIXES]
    jobs = job_records(project, layout)
    for path in (*tables, layout.report, *jobs.values()):
        if not path.is_file():
            raise InputError(
                f"{path}: missing; make the whole study first: make study SCALE={project.name}"
            )
    summary = _summary(project, jobs)
    with atomic_directory(layout.kept) as folder:
        for path in tables:
            shutil.copyfile(path, folder / path.name)
        write_json(folder / "study.json", summary)
    with atomic_path(layout.kept_report) as staged:
        shutil.copyfile(layout.report, staged)


def _summary(project: Project, jobs: Mapping[str, Path]) -> dict[str, object]:
    """Commits, hours and memory of the study's trainings and evaluations."""
    commits, seconds, memory = set[str](), 0.0, 0.0
    for path in jobs.values():
        found = read_json(path)
        git = found["git"]
        if git["dirty"] is not False:
            raise InputError(
                f"{path}: git.dirty: made from changes that no commit holds ({git['commit']}); "
                "commit them, remove the folder and make the study again"
            )
        commits.add(git["commit"])
        seconds += found["wall_time_s"]
        memory = max(memory, found["peak_memory_mib"])
    return {
        "scale": project.name,
        "synthetic": project.scale.synthetic,
        "seeds": list(project.scale.seeds),
        "jobs": len(jobs),
        "commits": sorted(commits),
        "hours": round(seconds / 3600, 2),
        "largest_job_mib": round(memory),
    }
