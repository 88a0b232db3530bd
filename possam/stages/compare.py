"""Stage ``compare``: a table and that of another checkout, paired by training seed and image."""

from pathlib import Path

from possam.params.project import Project
from possam.runtime.files import atomic_write


def print_comparison(project: Project, name: str, before: Path, *, out: Path | None) -> None:
    """Print what changed in table ``name`` from the checkout ``before`` to this one, as Markdown.

    Args:
        out: also write the text here.

    Errors as of :func:`possam.reporting.checkout_comparison.compare_checkouts`.
    """
    from possam.reporting.checkout_comparison import compare_checkouts

    text = compare_checkouts(project, name, before)
    print(text, end="")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            file.write(text)
