"""README and docs/: their size, their links and the code that they point to."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
BESIDE = [REPOSITORY / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")]
DOCUMENTS = [README, *BESIDE, *PAGES]
NAMES = [path.relative_to(REPOSITORY).as_posix() for path in DOCUMENTS]


def test_the_readme_is_a_page() -> None:
    assert len(README.read_text().splitlines()) <= 100


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_lines_are_wrapped(document: Path) -> None:
    """Only tables, commands and links may be longer than 100 columns."""
    inside = False
    for number, line in enumerate(document.read_text().splitlines(), 1):
        inside ^= line.startswith("```")
        wide = inside or line.startswith(("|", "```")) or "](" in line
        assert wide or len(line) <= 100, f"{document.name}:{number}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith("https://"):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_modules_that_are_named_exist(document: Path) -> None:
    """A module, or what a package offers by itself (``possam.load``)."""
    for name in re.findall(r"`(possam(?:\.[a-z_]+)+)`", document.read_text()):
        package, _, offered = name.rpartition(".")
        found = hasattr(importlib.import_module(package), offered)
        assert found or importlib.util.find_spec(name), f"{document.name}: {name}"


def test_the_readme_leads_to_every_page() -> None:
    text = README.read_text()
    paths = [page.relative_to(REPOSITORY).as_posix() for page in (*BESIDE, *PAGES)]
    missing = [path for path in paths if f"({path})" not in text]
    assert not missing


def test_the_model_s_page_names_every_part() -> None:
    """One pointer per module of the forward path, and none to a module that is not there."""
    page = (REPOSITORY / "docs/model.md").read_text()
    folder = REPOSITORY / "possam/model"
    shared = {"__init__", "options", "layers", "resolution", "compilation"}
    parts = {path.stem for path in folder.glob("*.py")} - shared
    missing = {part for part in parts if f"possam/model/{part}.py" not in page}
    assert not missing
