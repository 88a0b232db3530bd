"""One HTML page of a scale: every table, agreement, every figure, decisions, run times."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from possam.params.project import Project
from possam.reporting.table_text import agreement_rows, markdown
from possam.runtime.files import atomic_write, read_json

FOLDED = ("## Protocol", "## Provenance")
"""The report folds a table's page from the first of these sections on."""


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """What the report is made from.

    Attributes:
        tables: cards (JSON) of the tables, in the order shown.
        figures: cards (JSON) of the figures; each PNG lies beside its card.
        decisions: Markdown of the reproduction decisions.
        jobs: ``provenance.json`` of every training and evaluation, or its content, by its name in
            the page.
    """

    tables: Sequence[Path]
    figures: Sequence[Path]
    decisions: Path
    jobs: Mapping[str, Path | Mapping[str, Any]]


def write_report(project: Project, files: ReportFiles, *, out: Path) -> None:
    """Write the page, with styles and pictures in it: it needs no other file and no network.

    Raises:
        InputError: a file is missing or not JSON.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("possam.reporting"),
        autoescape=select_autoescape(("html", "j2")),
        undefined=StrictUndefined,
    )
    cards = [read_json(path) for path in files.tables]
    scale = project.scale
    text = environment.get_template("report.html.j2").render(
        scale=project.name,
        scale_title=scale.title,
        seeds=scale.seeds,
        synthetic=scale.synthetic,
        confidence=f"{100 * scale.evaluation.confidence:g} %",
        agreement=[
            (f"{card['table'].removeprefix('table')}. {card['title']}", *row)
            for card in cards
            for row in agreement_rows(card)
        ],
        tables=[_table(card) for card in cards],
        figures=[_figure(path) for path in files.figures],
        decisions=_html(files.decisions.read_text(encoding="utf-8")),
        **_jobs(files.jobs),
    )
    with atomic_write(out) as stream:
        stream.write(text)


def _html(text: str) -> str:
    """Markdown as HTML, without its title; headings go down one level, below those of the page."""
    from markdown_it import MarkdownIt

    text = re.sub(r"\A# .*\n", "", text)
    deeper = re.sub(r"^(#{2,4}) ", r"#\1 ", text, flags=re.MULTILINE)
    # Raw HTML is allowed for the line breaks in cells; all text is this project's own.
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(deeper))


def _table(card: Mapping[str, Any]) -> dict[str, str]:
    text = markdown(card)
    cut = min((text.index(title) for title in FOLDED if title in text), default=len(text))
    return {
        "name": card["table"],
        "number": card["table"].removeprefix("table"),
        "title": card["title"],
        "body": _html(text[:cut]),
        "card": _html(text[cut:]),
    }


def _figure(path: Path) -> dict[str, str]:
    """The card's texts, and the picture in full size at about a sixth of the PNG's bytes."""
    from PIL import Image

    card, stream = read_json(path), io.BytesIO()
    with Image.open(path.with_suffix(".png")) as image:
        image.convert("RGB").save(stream, "WEBP", quality=90, method=6)
    webp = base64.b64encode(stream.getvalue()).decode("ascii")
    return {"name": card["figure"], "title": card["title"], "note": card["note"], "webp": webp}


def _jobs(jobs: Mapping[str, Path | Mapping[str, Any]]) -> dict[str, Any]:
    """Wall time, memory and commit of each job, and the machines that they ran on."""
    runs, machines, total = [], set(), 0.0
    for name, path in jobs.items():
        found = read_json(path) if isinstance(path, Path) else path
        git, hardware = found["git"], found["hardware"]
        total += found["wall_time_s"]
        dirty = " (changed)" if git["dirty"] else ""
        runs.append(
            {
                "name": name,
                "seconds": f"{found['wall_time_s']:.0f}",
                "memory": f"{found['peak_memory_mib']:.0f}",
                "commit": f"{git['commit'][:10]}{dirty}",
            }
        )
        parts = [hardware["cpu"], f"{hardware['cores']} cores", f"{hardware['memory_gib']} GiB"]
        machines.add(", ".join([*parts, *hardware["gpus"]]))
    return {"runs": runs, "hours": f"{total / 3600:.1f}", "machine": "; ".join(sorted(machines))}
