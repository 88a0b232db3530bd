"""The report: everything is on the page, and the page needs nothing else."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from possam.params.project import Project
from possam.reporting.measurement import Comparisons
from possam.reporting.report import ReportFiles, write_report
from possam.runtime.errors import InputError
from tests.support.browser import take_screenshot
from tests.support.table_fakes import make_table

PARAMS = Path(__file__).resolve().parents[2] / "params"
VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Tags in balance, every address, every id, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.addresses.append(str(value))
            if name == "id":
                self.ids.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}>"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def provenance(path: Path, seconds: float, *, dirty: bool = False) -> Path:
    content = {
        "wall_time_s": seconds,
        "peak_memory_mib": 512.4,
        "git": {"commit": "0123456789abcdef", "dirty": dirty},
        "hardware": {"cpu": "A CPU", "cores": 2, "memory_gib": 16.0, "gpus": []},
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def files(tmp_path: Path) -> ReportFiles:
    agreement = {"pq": {"tau": 0.6, "low": -0.2, "high": 1.0, "rows": 5}}
    tables = []
    for name in Project("mini", folder=PARAMS).tables:
        found = Comparisons(agreement=agreement) if name == "table4" else Comparisons()
        make_table(tmp_path, name, found)
        tables.append(tmp_path / f"{name}.json")
    figure = tmp_path / "bars.json"
    figure.write_text(
        json.dumps({"figure": "bars", "title": "Seen & unseen", "note": "Two <runs>"})
    )
    Image.new("RGB", (4, 3), "red").save(tmp_path / "bars.png")
    return ReportFiles(
        tables=tables,
        figures=[figure],
        decisions=PARAMS / "decisions.md",
        jobs={
            "train a": provenance(tmp_path / "a.json", 5400.0),
            "evaluate a": provenance(tmp_path / "b.json", 1800.2, dirty=True),
        },
    )


def page_of(files: ReportFiles, out: Path, scale: str = "mini") -> Page:
    write_report(Project(scale, folder=PARAMS), files, out=out / "report.html")
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert page.open == [], "every element is closed"
    return page


def test_every_table_figure_decision_and_time_is_on_the_page(
    files: ReportFiles, tmp_path: Path
) -> None:
    page = page_of(files, tmp_path)
    for path in files.tables:
        card: dict[str, Any] = json.loads(path.read_text())
        assert card["table"] in page.ids
        for row in card["rows"]:
            assert row["row"] in page.text
            for cell in row["cells"].values():
                if "value" in cell:
                    assert f"{cell['value']:.1f}" in page.text
    assert "Seen & unseen" in page.text and "Two <runs>" in page.text, "texts are escaped"
    assert "figure-bars" in page.ids
    assert "queries" in page.text and "Slips in the published paper" in page.text
    assert "2.0 hours of wall time" in page.text
    assert "0123456789 (changed)" in page.text and "A CPU, 2 cores, 16.0 GiB" in page.text
    assert "+0.60 [-0.20, +1.00]" in page.text and "4. What each part brings" in page.text
    assert "Synthetic data." in page.text


def test_the_page_is_one_file(files: ReportFiles, tmp_path: Path) -> None:
    page = page_of(files, tmp_path)
    for address in page.addresses:
        assert address.startswith(("data:", "#")), address
        if address.startswith("#"):
            assert address[1:] in page.ids
    assert len(page.ids) == len(set(page.ids))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text and "url(" not in text and "<script" not in text


def test_real_data_is_not_called_synthetic(files: ReportFiles, tmp_path: Path) -> None:
    page = page_of(ReportFiles(tables=[], figures=[], decisions=files.decisions, jobs={}), tmp_path)
    assert "Synthetic data." in page.text and "No table has an order" in page.text
    paper = ReportFiles(tables=[], figures=[], decisions=files.decisions, jobs={})
    assert "Synthetic data." not in page_of(paper, tmp_path, "paper").text


def test_same_files_same_page(files: ReportFiles, tmp_path: Path) -> None:
    page_of(files, tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    page_of(files, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first


def test_a_browser_shows_it_without_a_complaint(files: ReportFiles, tmp_path: Path) -> None:
    page_of(files, tmp_path)
    picture = tmp_path / "report.png"
    console = take_screenshot(
        (tmp_path / "report.html").as_uri(), picture, profile=tmp_path / "profile"
    )
    assert console == []
    with Image.open(picture) as image:
        assert image.size == (1280, 1600)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50, "not an empty page"


def test_the_browser_helper_hears_complaints(tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<title>x</title><script>console.error('ouch')</script>")
    console = take_screenshot(page.as_uri(), tmp_path / "x.png", profile=tmp_path / "profile")
    assert any("ouch" in line for line in console)


def test_a_missing_table_is_reported_and_no_page_is_written(
    files: ReportFiles, tmp_path: Path
) -> None:
    files.tables[3].unlink()
    with pytest.raises(InputError, match=r"table4\.json"):
        page_of(files, tmp_path)
    assert not (tmp_path / "report.html").exists()
