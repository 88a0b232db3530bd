"""A table's card as Markdown, for people, and as plain text, for a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Card = Mapping[str, Any]

_NAME_WIDTH, _CELL_WIDTH = 18, 11
_PLACE = ("run", "benchmark", "variant")


def markdown(card: Card) -> str:
    """The whole page: the table by direction, controls, supplement, slips, protocol, provenance."""
    return "\n".join(
        [
            f"# {card['title']}",
            "",
            *_introduction(card),
            *(line for group in card["groups"] for line in _direction(card, group)),
            *_controls(card),
            *_supplement(card),
            *_slips(card),
            *_protocol(card),
            *_provenance(card),
        ]
    )


def _introduction(card: Card) -> list[str]:
    level = f"{100 * card['confidence']:g} %"
    lines = [f"Scale: `{card['scale']}`, {card['scale_title']}.", ""]
    if card["synthetic"]:
        lines += [
            "> **Synthetic data.** Reproduced rows were measured on a procedural world with small "
            "towers. The published numbers are of the real COCO and ADE20K: the two are **not "
            "comparable**, and the differences say nothing about the method.",
            "",
        ]
    value = "value"
    if len(card["seeds"]) > 1:
        value = f"mean ± standard deviation over {len(card['seeds'])} trainings (seeds " + (
            f"{', '.join(map(str, card['seeds']))})"
        )
    lines += [
        f"All values in percent. Reproduced: {value} [{level} bootstrap interval over test "
        "images]; below it the published value and, in brackets, the difference.",
        "",
    ]
    return lines


def _lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table: first column to the left, the others to the right."""
    ruler = [":--", *["--:"] * (len(header) - 1)]
    table = [list(header), ruler, *(list(row) for row in rows)]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table]


def interval(cell: Mapping[str, Any]) -> str:
    """``41.2 [39.8, 42.7]``, of several seeds ``41.2 ± 0.3 [39.8, 42.7]``."""
    return f"{_value(cell)} [{cell['low']:.1f}, {cell['high']:.1f}]"


def _value(cell: Mapping[str, Any]) -> str:
    spread = "" if cell["std"] is None else f" ± {cell['std']:.1f}"
    return f"{cell['value']:.1f}{spread}"


def _cell(card: Card, cell: Mapping[str, Any]) -> str:
    if "value" not in cell:
        return str(cell["printed"])
    text = f"**{interval(cell)}**"
    if cell["printed"]:
        text += f"<br>published {cell['printed']} ({cell['difference']:+.1f})"
    return text


def _direction(card: Card, group: str) -> list[str]:
    columns = [column for column in card["columns"] if column["group"] == group]
    rows = [
        [
            f"{row['row']} ({row['venue']})" if row["venue"] else row["row"],
            row["source"] if row["source"] == "published" or group in row["runs"] else "published",
            *(_cell(card, row["cells"][column["key"]]) for column in columns),
        ]
        for row in card["rows"]
    ]
    header = ["Method", "Source", *(column["title"] for column in columns)]
    return [f"## {card['groups'][group]}", "", *_lines(header, rows), ""]


def _controls(card: Card) -> list[str]:
    if not card["controls"]:
        return []
    titles = [metric["title"] for metric in card["controls"][0]["metrics"].values()]
    rows = []
    for control in card["controls"]:
        cells = []
        for metric in control["metrics"].values():
            text = interval(metric)
            if metric["trained"] is not None:
                text += f"<br>trained {metric['trained']:.1f}"
            cells.append(text)
        rows.append([control["name"], f"`{control['benchmark']}`", *cells])
    return [
        "## Controls",
        "",
        "These must fail: they show how much of a value comes from training, and how much from the "
        "names of the classes.",
        "",
        *_lines(["Control", "Benchmark", *titles], rows),
        "",
    ]


def _supplement(card: Card) -> list[str]:
    names = list(card["metrics"])
    rows = []
    for row in card["rows"]:
        for group, run in row["runs"].items():
            cells = []
            for name in names:
                found = run["supplement"].get(name)
                cells.append("" if found is None else interval(found))
            rows.append([row["row"], card["groups"][group], *cells, _agreement(run)])
    if not rows:
        return []
    header = ["Method", "Direction", *card["metrics"].values(), "panopticapi"]
    return [
        "## Seen and unseen classes, segments without names",
        "",
        *_lines(header, rows),
        "",
        "*panopticapi*: PQ that the reference program computes from the same predictions.",
        "",
    ]


def _agreement(run: Mapping[str, Any]) -> str:
    """panopticapi's PQ of each seed, and whether all equal ours."""
    if None in run["check"]:
        return "not run"
    theirs = [check["panopticapi_pq"] for check in run["check"]]
    return ", ".join(
        [*(f"{pq:.4f}" for pq in theirs), "equal" if theirs == run["pq"] else "DIFFERENT"]
    )


def _slips(card: Card) -> list[str]:
    if not card["slips"]:
        return []
    return [
        "## Published numbers to doubt",
        "",
        "They are shown as published; found by arithmetic alone.",
        "",
        *(f"- {note}." for note in card["slips"]),
        "",
    ]


def _protocol(card: Card) -> list[str]:
    """The protocol of each benchmark and variant; the runs of one benchmark share it."""
    lines: list[str] = []
    shown: list[tuple[str, str, str]] = []
    for protocol in card["protocol"]:
        benchmark, variant = protocol["benchmark"], protocol["variant"]
        texts = {k: v for k, v in protocol.items() if isinstance(v, str) and k not in _PLACE}
        settings = ", ".join(f"{k} {v}" for k, v in protocol.get("inference", {}).items())
        body = "\n".join(
            [
                *(f"- {key}: {value}" for key, value in texts.items()),
                *([f"- inference: {settings}"] if settings else []),
            ]
        )
        if (benchmark, variant, body) not in shown:
            shown.append((benchmark, variant, body))
            lines += [f"### Benchmark `{benchmark}`, inference `{variant}`", "", body, ""]
    if not lines:
        return []
    return [
        "## Protocol",
        "",
        "The weights that count are those of the last iteration.",
        "",
        *lines,
    ]


def _provenance(card: Card) -> list[str]:
    rows = [
        [
            f"`{name}`",
            f"`{str(found.get('run_identity', ''))[:12]}`",
            f"`{str(found.get('identity', ''))[:12]}`",
            f"`{found['content_hash'][:12]}`",
        ]
        for name, found in card["evaluations"].items()
    ]
    if not rows:
        return []
    return [
        "## Provenance",
        "",
        f"Published values: `params/published/{card['published_file']}`. Full hashes, inputs and "
        f"unrounded values: `{card['table']}.json`.",
        "",
        *_lines(
            ["Run / seed / benchmark / condition", "Run", "Evaluation", "Result's content"], rows
        ),
        "",
    ]


def terminal(card: Card) -> str:
    """Plain text, at most 80 columns: one block a direction, intervals below reproduced values."""
    lines = [card["title"], f"scale {card['scale']}: {card['scale_title']}"]
    if card["synthetic"]:
        lines.append("SYNTHETIC data: reproduced (*) and published numbers are not comparable")
    for group, title in card["groups"].items():
        columns = [column for column in card["columns"] if column["group"] == group]
        lines += ["", title, _text_line("", (column["title"] for column in columns))]
        for row in card["rows"]:
            cells = [row["cells"][column["key"]] for column in columns]
            ours = group in row["runs"]
            values = (_value(c) if "value" in c else c["printed"] or "-" for c in cells)
            lines.append(_text_line(row["row"] + (" *" if ours else ""), values))
            if ours:
                spans = (f"{c['low']:.1f}-{c['high']:.1f}" for c in cells)
                lines.append(_text_line("", spans))
    if card["controls"]:
        titles = (metric["title"] for metric in card["controls"][0]["metrics"].values())
        lines += ["", _text_line("Controls", titles)]
        for control in card["controls"]:
            values = (_value(metric) for metric in control["metrics"].values())
            lines += [control["name"], _text_line("", values)]
    return "\n".join([*lines, "", "* reproduced, with its bootstrap interval", ""])


def _text_line(name: str, cells: Iterable[str]) -> str:
    return (f"{name:<{_NAME_WIDTH}}" + "".join(f"{c:>{_CELL_WIDTH}}" for c in cells)).rstrip()
