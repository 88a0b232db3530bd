"""A kept study: the tables of several seeds as one, and a reader's own run judged against it.

Each seed is kept as the cards of its own tables, so that seeds may come one by one and from several
machines. Over seeds, values are means; the bounds of an interval over test images are the means of
the seeds' bounds. Seeds share their test images, so their intervals move together, and the mean's
own interval is at most as wide.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, t

from possam.evaluation.metrics import DECIMALS, PER_IMAGE
from possam.params.layout import Layout
from possam.params.project import Project
from possam.reporting.measurement import measure
from possam.reporting.table_text import column_title, markdown_table
from possam.runtime.errors import InputError
from possam.runtime.files import read_json

Card = dict[str, Any]

SEED_FOLDER = "seed{}"
STUDY = "study.json"
_SAME = ("title", "columns", "groups", "reference", "published_file", "confidence")
_OF_A_KEY = ("code", "device", "templates")


def kept_seeds(folder: Path) -> list[int]:
    """The seeds of the study that is kept in ``folder``; none if there is no study."""
    found = folder.glob(f"{SEED_FOLDER.format('*')}/{STUDY}")
    return sorted(int(path.parent.name.removeprefix("seed")) for path in found)


def read_kept_card(folder: Path, table: str, seed: int) -> Card:
    """The card of one seed's table in a kept study; InputError if it is missing."""
    found: Card = read_json(folder / SEED_FOLDER.format(seed) / f"{table}.json")
    return found


def check_alike(cards: Mapping[int, Card]) -> None:
    """Check that the cards of one table are of one study: same rows, columns, code and towers.

    Raises:
        InputError: two seeds' cards differ; the first difference is named.
    """
    first, *others = sorted(cards)
    for seed in others:
        one, other = cards[first], cards[seed]
        names = [[row["row"] for row in card["rows"]] for card in (one, other)]
        different = [key for key in _SAME if one[key] != other[key]]
        if names[0] != names[1]:
            different.append("rows")
        parts = [_by_place(card) for card in (one, other)]
        different += [key for key in parts[0] if parts[0][key] != parts[1].get(key)]
        if different:
            raise InputError(
                f"{one['table']}: seed {seed} is of another study than the kept seed {first}: "
                f"{different[0]} differs (another version of the code, or other parameters); keep "
                "it anew, without the seeds that are kept: possam keep --anew"
            )


def _by_place(card: Card) -> dict[str, Any]:
    """What decides each trained evaluation of a card besides its seed."""
    found = {}
    for key, evaluation in card["evaluations"].items():
        run, _, *rest = key.split("/")
        towers = {name: evaluation.get("inputs", {}).get(name) for name in ("sam", "clip")}
        place = "/".join((run, *rest))
        found[place] = {name: evaluation.get(name) for name in _OF_A_KEY} | towers
    return found


def merge_cards(cards: Mapping[int, Card]) -> Card:
    """One card from the cards of several seeds of one study; of one seed, its own.

    Raises:
        InputError: as :func:`check_alike`.
    """
    check_alike(cards)
    seeds = sorted(cards)
    every = [cards[seed] for seed in seeds]
    merged = copy.deepcopy(every[0])
    if len(seeds) == 1:
        return merged
    merged["seeds"] = seeds
    for place, row in enumerate(merged["rows"]):
        if row["source"] != "reproduced":
            continue
        same = [card["rows"][place] for card in every]
        for key, cell in row["cells"].items():
            if "value" in cell:
                cells = [one["cells"][key] for one in same]
                _average(cell, cells)
                if cell.get("difference") is not None:
                    cell["difference"] = cell["value"] - cell["published"]
                if cell.get("versus"):
                    _average(cell["versus"], [one["versus"] for one in cells])
        for group, run in row["runs"].items():
            runs = [one["runs"][group] for one in same]
            for name, value in run.items():
                if isinstance(value, list):
                    run[name] = [item for one in runs for item in one[name]]
            for name, value in run["supplement"].items():
                _average(value, [one["supplement"].get(name, value) for one in runs])
    for key, found in merged["agreement"].items():
        _average(found, [card["agreement"].get(key, found) for card in every])
        found["tau"] = _order(merged, key)
    for place, control in enumerate(merged["controls"]):
        for metric, value in control["metrics"].items():
            values = [card["controls"][place]["metrics"][metric] for card in every]
            _average(value, values)
            if value["trained"] is not None:
                value["trained"] = float(np.mean([one["trained"] for one in values]))
    for place, budget in enumerate(merged["budget"]):
        same = [card["budget"][place] for card in every]
        for part in ("lines", "gains"):
            for line, values in budget[part].items():
                for metric, value in values.items():
                    _average(value, [one[part][line][metric] for one in same])
        for metric, value in budget["ratio"].items():
            _average(value, [one["ratio"].get(metric, value) for one in same])
    merged["evaluations"] = {k: v for card in every for k, v in card["evaluations"].items()}
    return merged


def _average(target: dict[str, Any], values: Sequence[Mapping[str, Any]]) -> None:
    """Put means of value and bounds, and the values' standard deviation, into ``target``."""
    for name in ("value", "low", "high", "tau"):
        if isinstance(target.get(name), float | int):
            target[name] = float(np.mean([one[name] for one in values]))
    if "std" in target:
        target["std"] = float(np.std([one["value"] for one in values], ddof=1))


def _order(card: Card, key: str) -> float:
    """Kendall's tau of the published order and that of the mean values."""
    cells = [row["cells"][key] for row in card["rows"] if row["source"] == "reproduced"]
    pairs = [(c["published"], c["value"]) for c in cells if c.get("published") and "value" in c]
    return float(kendalltau(*zip(*pairs, strict=True)).statistic)


def chance(kept: Sequence[float], own: Sequence[float], *, confidence: float) -> float | None:
    """How far the means of two groups of trainings may lie apart by chance, at ``confidence``.

    Student's t with the variance of both groups pooled: trainings that differ only by seed or
    processor exceed it in 1 - ``confidence`` of all cells. None if no group has two trainings.
    """
    freedom = len(kept) + len(own) - 2
    if freedom < 1:
        return None
    squares = sum(float(np.var(each)) * len(each) for each in (kept, own))
    spread = (squares / freedom * (1 / len(kept) + 1 / len(own))) ** 0.5
    return float(t.ppf(0.5 + confidence / 2.0, freedom)) * spread


def judge(project: Project, name: str) -> str:
    """Whether this checkout's trainings behind table ``name`` agree with the kept study's.

    Returns Markdown with a line per cell that is trained here and measured per image: both means,
    their difference, what chance allows, and ``yes`` or ``no``.

    Raises:
        InputError: nothing is kept, or an evaluation of this checkout is missing.
    """
    layout, table = Layout(project), project.table(name)
    seeds = kept_seeds(layout.kept)
    if not seeds:
        raise InputError(
            f"{layout.kept}: no study is kept there, seed by seed; name another checkout to "
            f"compare with: possam compare {name} PATH"
        )
    cards = [read_kept_card(layout.kept, name, seed) for seed in seeds]
    confidence = project.scale.evaluation.confidence
    lines, verdicts = [], list[bool | None]()
    for row in table.rows:
        for column in table.columns:
            cell = row.cells.get(column.group)
            if cell is None or not cell.origin.is_trained or column.metric not in PER_IMAGE:
                continue
            kept = [_kept_value(card, row.name, column.key) for card in cards]
            found = measure(project, cell.origin)
            if found is None:
                raise InputError(
                    f"{name}: {row.name}: not evaluated here; make it: snakemake "
                    f"{layout.table(name)}"
                )
            own = [part["metrics"].get(column.metric) for part in found.parts()]
            if None in kept or None in own:
                continue
            title = column_title(cards[0], column.model_dump())
            line, within = _judged(kept, own, confidence, DECIMALS[column.metric])
            lines.append([row.name, title, *line])
            verdicts.append(within)
    counted = [within for within in verdicts if within is not None]
    outside = len(counted) - sum(counted)
    summary = (
        f"{outside} of {len(counted)} cells outside chance. At a level of {100 * confidence:g} % "
        f"about {(1 - confidence) * len(counted):.1f} are expected to be, if the code is the same. "
        "Cells of one table share trainings and images, so they are outside together."
    )
    if not counted:
        summary = (
            "The kept study has one seed, and so has this checkout: one training each says nothing "
            "of the spread of trainings. Keep or train a second seed."
        )
    own_seeds = ", ".join(map(str, project.scale.seeds))
    study = read_json(layout.kept / STUDY)
    texts = [
        f"# {name}: this checkout against the kept study",
        f"Kept: seeds {', '.join(map(str, seeds))}, commits "
        f"{', '.join(commit[:10] for commit in study['commits'])}, processors "
        f"{'; '.join(study['processors'])}. Here: seeds {own_seeds}. Percent.",
        "The same commit gives other digits on another processor, as with another seed. "
        "*Chance allows*: Student's t of the spread over the trainings of both sides, at "
        f"{100 * confidence:g} % per cell; the test images are the same and add nothing.",
        markdown_table(_HEADER, lines),
        summary,
    ]
    return "\n\n".join(texts) + "\n"


_HEADER = ("Row", "Column", "Kept", "Here", "Difference", "Chance allows", "Within chance")


def _kept_value(card: Card, row: str, column: str) -> float | None:
    cells: Callable[[str], Any] = {r["row"]: r["cells"] for r in card["rows"]}.get
    value = (cells(row) or {}).get(column, {}).get("value")
    return None if value is None else float(value)


def _judged(
    kept: Sequence[Any], own: Sequence[Any], confidence: float, places: int
) -> tuple[list[str], bool | None]:
    difference = float(np.mean(own) - np.mean(kept))
    allowed = chance(kept, own, confidence=confidence)
    texts = [f"{np.mean(kept):.{places}f}", f"{np.mean(own):.{places}f}"]
    texts.append(f"{difference:+.{places}f}")
    if allowed is None:
        return [*texts, "", "cannot be said"], None
    within = abs(difference) <= allowed
    return [*texts, f"± {allowed:.{places}f}", "yes" if within else "**no**"], within
