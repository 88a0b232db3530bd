"""Pages of docs/ that say what to edit and what to type, as data.

A block whose first line names a file is an edit of that file; a block of the kind ``sh`` is typed.
"""

import re
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
HOW_TO = [REPOSITORY / f"docs/{name}.md" for name in ("add-a-table", "change-the-model")]
"""Pages that are followed from the first edit to the last command, by tests of their own."""
HOW_TO.append(REPOSITORY / "docs/add-a-dataset.md")


class Edit(NamedTuple):
    """Lines that a page puts into a file, which may be new."""

    file: str
    text: str


def edits_of(page: Path) -> list[Edit]:
    """The edits of a page, in their order."""
    found = re.findall(r"^```\w+ (\S+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Edit(file, text) for file, text in found]


def commands_of(page: Path) -> list[str]:
    """The commands of a page, without their comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).splitlines()
    return [command for line in lines if (command := re.sub(r"(^|\s+)#.*", "", line).strip())]


def apply(edit: Edit, folder: Path, *, below: str | None = None) -> None:
    """Put an edit at the end of its file, or behind the line ``below``."""
    path = folder / edit.file
    before = path.read_text() if path.exists() else ""
    if below is None:
        path.write_text(before + edit.text)
        return
    head, found, tail = before.partition(f"{below}\n")
    assert found, f"{edit.file}: no line {below}"
    path.write_text(head + found + edit.text + tail)
