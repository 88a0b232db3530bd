"""Files that say who may use the project, and which version it is: one fact, one place."""

import re
import tomllib
from pathlib import Path

import yaml

from possam import __version__

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def test_the_changelog_begins_with_this_version() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (\S+)", text, re.MULTILINE)
    released = [name for name in headings if name != "Unreleased"]
    assert released[0] == __version__
    numbers = [tuple(map(int, name.split("."))) for name in released]
    assert numbers == sorted(numbers, reverse=True)


def test_the_version_stands_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    assert "version" not in yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())


def test_one_licence_everywhere() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert PROJECT["license"] == citation["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (REPOSITORY / "LICENSE").read_text()
    assert "Apache-2.0" in (REPOSITORY / "README.md").read_text()


def test_the_notice_names_the_terms_of_every_upstream_file() -> None:
    """A licence in params/assets.yaml is one whose terms NOTICE names."""
    notice = " ".join((REPOSITORY / "NOTICE").read_text().split())
    assets = yaml.safe_load((REPOSITORY / "params/assets.yaml").read_text())
    ours = ("made by this project", "a table of facts")
    for name, asset in assets.items():
        terms = asset["licence"]
        if not terms.startswith(ours):
            first = re.split(r" \(|:|, ", terms.removeprefix("images: "))[0]
            first = first.removeprefix("annotations: ").removeprefix("ADE20K ")
            assert first in notice, f"{name}: {first}"
