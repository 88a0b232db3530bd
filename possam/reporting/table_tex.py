"""A table's card as a LaTeX table (package booktabs), ready for ``\\input``."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from possam.params.tables import EXTERNAL, LATER, TRAINING_FREE
from possam.reporting.error_budget import HEADER, budget_rows, budget_text
from possam.reporting.table_notes import code_changes
from possam.reporting.table_text import interval

_MARKS = {
    EXTERNAL: (r"$^\dagger$", "External predictions, measured here."),
    TRAINING_FREE: (r"$^\ast$", "Nothing is trained."),
    LATER: (r"$^\ddagger$", "Published after the paper."),
}
"""Mark and note of rows by their source."""

_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
}


def escape(text: str) -> str:
    """``text`` as LaTeX prints it; ``->`` becomes an arrow."""
    return "".join(_SPECIAL.get(character, character) for character in text.replace("->", "→"))


def tex(card: Mapping[str, Any]) -> str:
    """A ``tabular`` with a line per row; reproduced values are bold, with their interval below.

    The comments say what the numbers are; at synthetic scales, so does the note below the table.
    """
    columns = [c for group in card["groups"] for c in card["columns"] if c["group"] == group]
    widths = Counter(column["group"] for column in columns)
    labels = list(card["labels"].values())
    lines = [
        f"% {card['title']}; scale {card['scale']}; made by possam, see {card['table']}.json",
        "% needs \\usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'l' * len(labels)}{'r' * len(columns)}}}",
        r"\toprule",
    ]
    if len(card["groups"]) > 1:
        start = 2 + len(labels)
        cells, rules = [""] * (start - 1), []
        for group, title in card["groups"].items():
            cells.append(rf"\multicolumn{{{widths[group]}}}{{c}}{{{escape(title)}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + widths[group] - 1}}}")
            start += widths[group]
        lines += [_line(cells), " ".join(rules)]
    titles = ["Method", *labels, *(column["title"] for column in columns)]
    lines += [_line([escape(title) for title in titles]), r"\midrule"]
    sources: set[str] = set()
    for row in card["rows"]:
        shown = [(row["cells"][column["key"]], column["decimals"]) for column in columns]
        mark = _MARKS.get(row["source"], ("", ""))[0]
        if row["source"] == LATER and LATER not in sources:
            lines.append(r"\midrule")
        sources.add(row["source"])
        head = [escape(row["row"]) + mark, *(escape(row["labels"][key]) for key in card["labels"])]
        lines.append(_line([*head, *(_value(*cell) for cell in shown)]))
        if any("value" in cell for cell, _ in shown):
            lines.append(_line([*[""] * len(head), *(_interval(*cell) for cell in shown)]))
    note = f"Brackets: {100 * card['confidence']:g} % bootstrap interval over test images."
    if card["synthetic"]:
        note += " Bold values are of synthetic data and not comparable with published ones."
    note += "".join(f" {change}." for change in code_changes(card))
    marked = "".join(f" {mark}{text}" for key, (mark, text) in _MARKS.items() if key in sources)
    # Below the tabular: a long line in it would widen its last column.
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        rf"\par\smallskip{{\footnotesize {escape(note)}{marked}}}",
        *_budget(card),
    ]
    return "\n".join(lines) + "\n"


def _budget(card: Mapping[str, Any]) -> list[str]:
    """A second ``tabular`` below the table: the error budget of the reference row."""
    rows = budget_rows(card, mean=interval)
    if not rows:
        return []
    note = budget_text(card).replace("*", "")
    return [
        r"\par\medskip",
        rf"\begin{{tabular}}{{{'l' * 2}{'r' * (len(HEADER) - 2)}}}",
        r"\toprule",
        _line([escape(title) for title in HEADER]),
        r"\midrule",
        *(_line([escape(cell) for cell in row]) for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        rf"\par\smallskip{{\footnotesize Error budget. {escape(note)}}}",
    ]


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _value(cell: Mapping[str, Any], decimals: int) -> str:
    if "missing" in cell:
        return "--"
    if "value" not in cell:
        return escape(cell["printed"]) or "--"
    spread = rf" $\pm$ {cell['std']:.{decimals}f}" if cell["std"] else ""
    return rf"\textbf{{{cell['value']:.{decimals}f}}}{spread}"


def _interval(cell: Mapping[str, Any], decimals: int) -> str:
    if "value" not in cell or cell["low"] == cell["high"]:
        return ""
    return rf"{{\scriptsize [{cell['low']:.{decimals}f}, {cell['high']:.{decimals}f}]}}"
