"""Hooks of mkdocs.yml: pages of the site that do not lie in docs/.

The README becomes the first page. Files of the repository that a page links to become pages below
``repository/`` (Markdown as it is, other text as a listing), so that no link leads out of the site.
``reference/`` has a page per subpackage, from docstrings, and one of the command line.
"""

import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ("pictures", "model", "training", "evaluation", "datasets", "params", "synthetic")
"""Subpackages whose functions a user may call; the others serve the pipeline."""

_LINK = re.compile(r"(\]\()([^)\s#]+)([^)]*\))")
_ROLE = re.compile(r":(?:mod|class|func|data|attr|meth|exc):(<code>)")
_AS_IT_IS = (".html", ".png", ".svg", ".pdf", ".jpg")
_LANGUAGE = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".toml": "toml", ".json": "json"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here."""
    texts = {"README.md": (ROOT / "README.md").read_text("utf-8")}
    todo = [*texts, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen: set[str] = set()
    while todo:
        path = todo.pop()
        if path in seen or not (ROOT / path).exists():
            continue
        seen.add(path)
        if path.endswith(".md"):
            todo += [target for target, _ in _targets(path, (ROOT / path).read_text("utf-8"))]
        if not path.startswith("docs/"):
            files.append(_page(path, config))
    for uri, text in {**_reference(), "reference/commands.md": _commands()}.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to files of the repository lead to their pages."""
    source = _source_of(page.file.src_uri)
    if source is None:
        return markdown
    markdown = markdown.replace("<!-- towers -->", _towers())

    def replace(match: re.Match[str]) -> str:
        target = _resolve(source, match[2])
        if target is None:
            return match[0]
        uri = posixpath.relpath(_uri(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{uri}{match[3]}"

    return _LINK.sub(replace, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Sphinx's roles in docstrings (``:func:``) are not Markdown: only the name is shown."""
    return _ROLE.sub(r"\1", html)


def _targets(path: str, text: str) -> Iterator[tuple[str, str]]:
    """Files of the repository that a page links to, and the links as they are written."""
    for match in _LINK.finditer(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        target = _resolve(path, match[2])
        if target is not None:
            yield target, match[2]


def _resolve(source: str, link: str) -> str | None:
    """The file that a relative link in ``source`` names, from the root; None for other links."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return target if (ROOT / target).exists() else None


def _uri(path: str) -> str:
    """Where the file ``path`` of the repository lies in the site's sources."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    is_page = not path.endswith((".md", *_AS_IT_IS))
    return f"repository/{path}{'.md' * is_page}"


def _source_of(uri: str) -> str | None:
    """The file of the repository behind a page; None for one that is made here."""
    if uri == "index.md":
        return "README.md"
    if uri.startswith("repository/"):
        path = uri.removeprefix("repository/")
        return path if (ROOT / path).is_file() else None
    return None if uri.startswith("reference/") else f"docs/{uri}"


def _page(path: str, config: Any) -> File:
    """The page of a file or folder outside docs/."""
    file = ROOT / path
    if path.endswith(_AS_IT_IS):
        return File.generated(config, _uri(path), content=file.read_bytes())
    if path.endswith(".md"):
        return File.generated(config, _uri(path), content=file.read_text("utf-8"))
    if file.is_dir():
        names = sorted(f"- `{one.name}{'/' * one.is_dir()}`" for one in file.iterdir())
        text = "\n".join(names)
    else:
        language = _LANGUAGE.get(file.suffix, "text")
        text = f"````{language}\n{file.read_text('utf-8').rstrip()}\n````"
    return File.generated(config, _uri(path), content=f"# {path}\n\n{text}\n")


def _towers() -> str:
    """Files of the shipped towers as a table, from their record."""
    record = json.loads((ROOT / "data/towers/provenance.json").read_text("utf-8"))
    rows = [
        f"| `{name}` | {file['bytes']:,} | `{file['sha256'][:16]}` |"
        for name, file in sorted(record["files"].items())
    ]
    hours = record["wall_time_s"] / 3600
    head = ["| file | bytes | SHA-256 (first 16) |", "|---|---:|---|"]
    after = (
        f"Trained with seed {record['seed']} in {hours:.1f} hours on {record['hardware']['cpu']}."
    )
    return "\n".join([*head, *rows, "", after])


def _reference() -> dict[str, str]:
    """A page per subpackage of :data:`REFERENCE`: every public module."""
    pages = {"reference/library.md": "# The library\n\n::: possam\n"}
    for name in REFERENCE:
        modules = []
        for path in sorted((ROOT / "possam" / name).rglob("*.py")):
            dotted = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            if not path.stem.startswith("_"):
                modules.append(f"::: {dotted}\n")
        if modules:
            pages[f"reference/{name}.md"] = f"# possam.{name}\n\n" + "\n".join(modules)
    return pages


def _commands() -> str:
    """The page of the command line, from the command line itself."""
    import typer
    from typer.cli import get_docs_for_click

    from possam.cli import app

    os.environ.pop("POSSAM_SCALE", None)  # help texts show the value
    command = typer.main.get_command(app)
    context = command.make_context("possam", [], resilient_parsing=True)
    text = get_docs_for_click(obj=command, ctx=context, name="possam")
    return text.replace("# `possam`", "# Commands", 1)
