"""A table's card as Markdown, for people, and as plain text, for a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

from possam.params.tables import EXTERNAL, LATER, TRAINING_FREE
from possam.reporting.error_budget import (
    BUDGET_METRICS,
    HEADER,
    LINES,
    budget_rows,
    budget_text,
)
from possam.reporting.table_notes import code_changes, external_rows, introduction, level

Card = Mapping[str, Any]

_NAME_WIDTH, _CELL_WIDTH = 18, 11
_MARKS = {"reproduced": " *", EXTERNAL: " +", TRAINING_FREE: " -", LATER: " >"}
_FOOT = {
    TRAINING_FREE: "- SAM + CLIP, measured here: nothing is trained",
    LATER: "> published after the paper",
}
_PLACE = ("run", "benchmark", "variant")


def markdown(card: Card) -> str:
    """The whole page: the table by direction, controls, supplement, slips, protocol, provenance."""
    parts = (
        _gaps,
        _comparison,
        _budget,
        _ranks,
        _controls,
        _supplement,
        _notes,
        _slips,
        _protocol,
        _provenance,
    )
    paragraphs = [
        f"# {card['title']}",
        *introduction(card),
        *(text for group in card["groups"] for text in _direction(card, group)),
        *(text for part in parts for text in part(card)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: first column to the left, the others to the right."""
    table = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in table]
    return "\n".join(f"| {line} |" for line in lines)


def _section(title: str, text: str, header: Sequence[str], rows: Sequence[list[str]]) -> list[str]:
    """Heading, text and table; nothing if the table has no row."""
    return [f"## {title}", text, markdown_table(header, rows)] if rows else []


def interval(cell: Mapping[str, Any], decimals: int = 1) -> str:
    """``41.2 [39.8, 42.7]``; with several seeds ``41.2 ± 0.3 [39.8, 42.7]``.

    Counts, such as numbers of parameters, have no interval.
    """
    if cell["low"] == cell["high"]:
        return _value(cell, decimals)
    return f"{_value(cell, decimals)} [{cell['low']:.{decimals}f}, {cell['high']:.{decimals}f}]"


def _value(cell: Mapping[str, Any], decimals: int = 1) -> str:
    spread = f" ± {cell['std']:.{decimals}f}" if cell["std"] else ""
    return f"{cell['value']:.{decimals}f}{spread}"


def _cell(cell: Mapping[str, Any], decimals: int) -> str:
    if "missing" in cell:
        return f"<br>published {cell['printed']}" if cell["printed"] else ""
    if "value" not in cell:
        return str(cell["printed"])
    text = f"**{interval(cell, decimals)}**"
    if cell["printed"]:
        text += f"<br>published {cell['printed']} ({cell['difference']:+.{decimals}f})"
    return text


def _direction(card: Card, group: str) -> list[str]:
    columns = [column for column in card["columns"] if column["group"] == group]
    rows = [
        [
            f"{row['row']} ({row['venue']})" if row["venue"] else row["row"],
            *(row["labels"][key] for key in card["labels"]),
            _source(row, group),
            *(_cell(row["cells"][column["key"]], column["decimals"]) for column in columns),
        ]
        for row in card["rows"]
    ]
    titles = (column["title"] for column in columns)
    header = ["Method", *card["labels"].values(), "Source", *titles]
    return [f"## {card['groups'][group]}", markdown_table(header, rows)]


def _source(row: Mapping[str, Any], group: str) -> str:
    """Where a row's values of a group of columns come from."""
    if row["runs"] and group not in row["runs"]:
        return "published"
    return "published later" if row["source"] == LATER else str(row["source"]).replace("_", "-")


def _gaps(card: Card) -> list[str]:
    """The cells that external predictions leave empty, and why."""
    notes = [
        f"- {row['row']}, {column_title(card, column)}: {reason}."
        for row in card["rows"]
        for column in card["columns"]
        if (reason := row["cells"][column["key"]].get("missing"))
    ]
    return ["## Empty cells", "\n".join(notes)] if notes else []


def _comparison(card: Card) -> list[str]:
    """Every measured row minus the reference row, where the two are paired."""
    columns = card["columns"]
    rows = []
    for row in card["rows"]:
        found = [row["cells"][column["key"]].get("versus") for column in columns]
        if any(found):
            rows.append([row["row"], *(_versus(difference) for difference in found)])
    end = ", which the mean over seeds reduces." if len(card["seeds"]) > 1 else "."
    return _section(
        f"Against {card['reference']}",
        f"The row minus *{card['reference']}*, in percentage points, with the {level(card)} "
        "interval of a paired bootstrap (both on the same resampled images). **Bold**: the "
        "interval excludes zero, so other test images would hardly reverse the difference. The "
        f"interval does not cover chance in training{end}",
        ["Method", *(column_title(card, column) for column in columns)],
        rows,
    )


def _budget(card: Card) -> list[str]:
    return _section("Error budget", budget_text(card), HEADER, budget_rows(card, mean=interval))


def column_title(card: Card, column: Mapping[str, Any]) -> str:
    """``PQ``; with several groups ``PQ (COCO -> ADE20K)``."""
    if len(card["groups"]) == 1:
        return str(column["title"])
    return f"{column['title']} ({card['groups'][column['group']]})"


def _versus(difference: Mapping[str, float] | None) -> str:
    if difference is None:
        return ""
    low, high = difference["low"], difference["high"]
    text = f"{difference['value']:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def agreement_rows(card: Card) -> list[list[str]]:
    """Title, tau with its interval, and number of rows of each column with an agreement."""
    titles = {column["key"]: column_title(card, column) for column in card["columns"]}
    rows = []
    for key, found in card["agreement"].items():
        tau, low, high = (f"{found[part]:+.2f}" for part in ("tau", "low", "high"))
        rows.append([titles[key], f"{tau} [{low}, {high}]", str(found["rows"])])
    return rows


def _ranks(card: Card) -> list[str]:
    names = ", ".join(external_rows(card))
    left_out = f"\n\nLeft out because external: {names}." if names else ""
    return _section(
        "Agreement with the published order",
        "Kendall's tau-b between the published order of the reproduced rows and ours: 1 is the "
        f"same order, -1 the reverse. Brackets: the middle {level(card)} over resampled test "
        f"images. No row was tuned for this agreement.{left_out}",
        ["Column", "tau", "Rows"],
        agreement_rows(card),
    )


def _controls(card: Card) -> list[str]:
    rows, titles = [], list[str]()
    for control in card["controls"]:
        titles = [metric["title"] for metric in control["metrics"].values()]
        cells = []
        for metric in control["metrics"].values():
            trained = metric["trained"]
            below = "" if trained is None else f"<br>trained {trained:.1f}"
            cells.append(interval(metric) + below)
        rows.append([control["name"], f"`{control['benchmark']}`", *cells])
    return _section(
        "Controls",
        "These must score low: they show how much of a value comes from training, and how much "
        "from the class names.",
        ["Control", "Benchmark", *titles],
        rows,
    )


def _supplement(card: Card) -> list[str]:
    rows = []
    for row in card["rows"]:
        for group, run in row["runs"].items():
            if found := run["supplement"]:
                cells = [interval(found[name]) if name in found else "" for name in card["metrics"]]
                rows.append([row["row"], card["groups"][group], *cells, _agreement(run)])
    if not rows:
        return []
    header = ["Method", "Direction", *card["metrics"].values(), "panopticapi"]
    return [
        "## Seen and unseen classes, segments without names",
        markdown_table(header, rows),
        "*panopticapi*: PQ by the reference program from the same predictions.",
    ]


def _agreement(run: Mapping[str, Any]) -> str:
    """panopticapi's PQ of each seed, and whether all equal ours; empty where there is no PQ."""
    if None in run["pq"]:
        return ""
    if None in run["check"]:
        return "not run"
    theirs = [check["panopticapi_pq"] for check in run["check"]]
    verdict = "equal" if theirs == run["pq"] else "DIFFERENT"
    return ", ".join([*(f"{pq:.4f}" for pq in theirs), verdict])


def _notes(card: Card) -> list[str]:
    notes = card.get("notes")  # cards that were kept before there were notes have none
    return ["## Notes", "\n".join(f"- {note}" for note in notes)] if notes else []


def _slips(card: Card) -> list[str]:
    if not card["slips"]:
        return []
    return [
        "## Published numbers to doubt",
        "They are shown as published; arithmetic casts doubt on them.",
        "\n".join(f"- {note}." for note in card["slips"]),
    ]


def _protocol(card: Card) -> list[str]:
    """The protocol of each benchmark and variant; the runs of one benchmark share it."""
    shown: dict[tuple[str, str, str], str] = {}
    for protocol in card["protocol"]:
        benchmark, variant = protocol["benchmark"], protocol["variant"]
        texts = {k: v for k, v in protocol.items() if isinstance(v, str) and k not in _PLACE}
        if settings := protocol.get("inference"):
            texts["inference"] = ", ".join(f"{k} {v}" for k, v in settings.items())
        body = "\n".join(f"- {key}: {value}" for key, value in texts.items())
        how = f"inference `{variant}`" if variant else f"predictions of `{protocol['run']}`"
        heading = f"### Benchmark `{benchmark}`, {how}"
        shown.setdefault((benchmark, variant, body), heading)
    if not shown:
        return []
    return [
        "## Protocol",
        "The weights that count are those of the last iteration.",
        *(text for (_, _, body), heading in shown.items() for text in (heading, body)),
    ]


def _provenance(card: Card) -> list[str]:
    names = ("run_identity", "identity", "content_hash")
    rows = [
        [f"`{evaluation}`", *(f"`{str(found.get(name, ''))[:12]}`" for name in names)]
        for evaluation, found in card["evaluations"].items()
    ]
    return _section(
        "Provenance",
        f"Published values: `params/published/{card['published_file']}`. Full hashes, inputs and "
        f"unrounded values: `{card['table']}.json`.",
        ["Run / seed / benchmark / condition", "Run", "Evaluation", "Result's content"],
        rows,
    )


def terminal(card: Card) -> str:
    """Plain text, at most 80 columns: one block per direction, intervals below measured values."""
    lines = [card["title"], f"scale {card['scale']}: {card['scale_title']}"]
    if card["synthetic"]:
        lines.append("SYNTHETIC data: reproduced (*) and published numbers are not comparable")
    lines += [line for change in code_changes(card) for line in wrap(change, 80)]
    for group, title in card["groups"].items():
        columns = [column for column in card["columns"] if column["group"] == group]
        lines += ["", title, _text_line("", (column["title"] for column in columns))]
        for row in card["rows"]:
            cells = [(row["cells"][column["key"]], column["decimals"]) for column in columns]
            measured = group in row["runs"]
            mark = _MARKS.get(row["source"], "") if measured or not row["runs"] else ""
            name = row["row"] + mark
            if len(name) > _NAME_WIDTH:  # a line of its own, so that the columns stay in line
                lines.append(name)
                name = ""
            lines.append(_text_line(name, (_text_value(*cell) for cell in cells)))
            if measured:
                lines.append(_text_line("", (_text_span(*cell) for cell in cells)))
    for budget in card["budget"]:
        lines += ["", f"Error budget of {card['reference']}, {card['groups'][budget['group']]}"]
        lines.append(_text_line("", ("PQ", "", "mIoU", "")))
        for name, values in budget["lines"].items():
            found = [values.get(metric) for metric in BUDGET_METRICS]
            parts = [part for each in found for part in _text_parts(each)]
            lines += [f"  {LINES[name]}", _text_line("", parts)]
    if card["controls"]:
        titles = (metric["title"] for metric in card["controls"][0]["metrics"].values())
        lines += ["", _text_line("Controls", titles)]
        for control in card["controls"]:
            values = (_value(metric) for metric in control["metrics"].values())
            lines += [control["name"], _text_line("", values)]
    lines += ["", "* reproduced, with its bootstrap interval"]
    if external_rows(card):
        lines.append("+ external predictions, measured here")
    sources = {row["source"] for row in card["rows"]}
    lines += [text for source, text in _FOOT.items() if source in sources]
    return "\n".join([*lines, ""])


def _text_value(cell: Mapping[str, Any], decimals: int) -> str:
    if "missing" in cell:
        return "-"
    return _value(cell, decimals) if "value" in cell else cell["printed"] or "-"


def _text_span(cell: Mapping[str, Any], decimals: int) -> str:
    if "value" not in cell or cell["low"] == cell["high"]:
        return ""
    return f"{cell['low']:.{decimals}f}-{cell['high']:.{decimals}f}"


def _text_parts(cell: Mapping[str, Any] | None) -> tuple[str, str]:
    """A value and its interval; dashes where there is none."""
    return ("-", "") if cell is None else (_value(cell), _text_span({**cell}, 1))


def _text_line(name: str, cells: Iterable[str]) -> str:
    return (f"{name:<{_NAME_WIDTH}}" + "".join(f"{c:>{_CELL_WIDTH}}" for c in cells)).rstrip()
