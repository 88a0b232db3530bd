"""What a check found about one matter, with its remedy."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """What was found about one matter, and its remedy (empty if none is needed).

    ``state``: ``ok``, ``warning`` (the pipeline can run, or will deal with it) or ``problem``.
    """

    matter: str
    state: str
    text: str
    remedy: str = ""

    @classmethod
    def of(cls, matter: str, good: bool, text: str, otherwise: str, remedy: str) -> "Finding":
        """``ok`` if ``good``, else the state ``otherwise`` with the remedy."""
        return cls(matter, OK, text) if good else cls(matter, otherwise, text, remedy)


Check = tuple[str, Callable[[], Finding | Iterable[Finding]]]
"""A matter, and what examines it."""


def print_findings(findings: Sequence[Finding], *, scale: str) -> int:
    """Print one line per finding, and their count. Returns the number of problems."""
    width = max(len(found.matter) for found in findings) + 2
    for found in findings:
        remedy = f" -> {found.remedy}" if found.remedy else ""
        text = " ".join(f"{found.text}{remedy}".split())
        print(f"{found.state:<9}{found.matter:<{width}}{text}")
    problems = sum(found.state == PROBLEM for found in findings)
    warnings = sum(found.state == WARNING for found in findings)
    print(f"scale {scale}: {problems} problems, {warnings} warnings")
    return problems
