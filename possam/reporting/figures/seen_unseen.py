"""PQ of seen and unseen classes (paper, Fig. 6): what was measured, beside published values."""

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from possam.params.figures import BarParams, SeenUnseenParams
from possam.params.project import Project
from possam.params.published import read_columns
from possam.reporting.figures.style import COLOURS, Drawing, scale_line, start_figure
from possam.reporting.measurement import Measurement, measure
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json

SUBSETS = {"unseen": COLOURS[5], "seen": COLOURS[0]}
"""Kinds of classes in the order of their bars, with their colours."""

_WIDTH = 0.38


@dataclass(frozen=True, kw_only=True)
class Value:
    """One bar, in percent; ``low`` and ``high`` are None for a published value."""

    value: float
    low: float | None = None
    high: float | None = None


Bars = Mapping[str, Mapping[str, Value]]
"""Method -> subset (a key of :data:`SUBSETS`) -> value."""


def seen_unseen(project: Project, params: SeenUnseenParams) -> Drawing:
    """Draw the figure from this scale's evaluations and the published values.

    Raises:
        InputError: an evaluation, its PQ, or a published value is missing.
    """
    source, scale = params.published, project.scale
    columns = {"seen": source.seen, "unseen": source.unseen}
    path = project.folder / "published" / source.file
    published = {
        name: {subset: Value(value=values[column]) for subset, column in columns.items()}
        for name, values in read_columns(path, tuple(columns.values())).items()
    }
    found = [(bar, _measured(project, bar)) for bar in params.bars]
    measured = {
        bar.name: {subset: _value(bar, result, subset) for subset in SUBSETS}
        for bar, result in found
    }
    note = _note(project)
    figure = draw_bars(
        measured,
        published,
        title=params.title,
        subtitle=scale_line(project),
        labels=(f"measured{' (synthetic)' * scale.synthetic}", f"published ({source.source})"),
        note=note,
    )
    parts = ("seed", "identity", "run_identity", "counts")
    facts = {
        "seeds": list(scale.seeds),
        "measured": {
            name: {subset: [one.value, one.low, one.high] for subset, one in pair.items()}
            for name, pair in measured.items()
        },
        "published": {
            name: {subset: one.value for subset, one in pair.items()}
            for name, pair in published.items()
        },
        "published_file": source.file,
        "evaluations": [
            {"run": bar.run, "benchmark": bar.benchmark, "content_hash": hash_json(one)}
            | {part: one[part] for part in parts}
            for bar, result in found
            for one in result.evaluations
        ],
    }
    return Drawing(figure=figure, note=note, facts=facts)


def _measured(project: Project, bar: BarParams) -> Measurement:
    found = measure(project, bar.origin)
    if found is None:
        raise InputError(
            f"run {bar.run!r} on {bar.benchmark!r}: no evaluation at scale {project.name}; "
            f"make it: possam evaluate {bar.run} {bar.benchmark} --scale {project.name}"
        )
    return found


def _value(bar: BarParams, result: Measurement, subset: str) -> Value:
    key = f"pq_{subset}"
    value, interval = result.metrics.get(key), result.intervals.get(key)
    if value is None or interval is None:
        raise InputError(
            f"run {bar.run!r} on {bar.benchmark!r}: PQ of {subset} classes is missing; add "
            "'panoptic' to the benchmark's metrics and evaluate again"
        )
    return Value(value=value, low=interval[0], high=interval[1])


def _note(project: Project) -> str:
    kind = "Means over seeds " if len(project.scale.seeds) > 1 else "One seed: "
    seeds = f"{kind}{', '.join(map(str, project.scale.seeds))}."
    end = "; real data, so the two sides must not be compared." if project.scale.synthetic else "."
    return (
        "Bars: PQ averaged over the classes whose names training knew (seen) or did not (unseen). "
        f"Whiskers: {100 * project.scale.evaluation.confidence:g} % bootstrap intervals over "
        f"images. {seeds} Hatched: published values, without intervals{end}"
    )


def draw_bars(
    measured: Bars,
    published: Bars,
    *,
    labels: tuple[str, str],
    title: str,
    subtitle: str,
    note: str,
) -> Figure:
    """Two axes with one scale, named by ``labels``: what was measured, and published (hatched)."""
    # The name over an axes needs the room of two methods.
    rooms = [max(2, len(bars)) for bars in (measured, published)]
    width = 1.6 + 0.85 * sum(rooms)
    figure, foot = start_figure(width, 3.6, title=title, subtitle=subtitle, note=note)
    width, height = figure.get_size_inches()
    grid = figure.add_gridspec(
        1, 2, width_ratios=rooms, wspace=0.08,
        left=0.6 / width, right=1 - 0.15 / width,
        bottom=(foot + 0.5) / height, top=1 - 1.0 / height,
    )  # fmt: skip
    left = figure.add_subplot(grid[0])
    right = figure.add_subplot(grid[1], sharey=left)
    _draw_axes(left, measured, title=labels[0], hatch=None)
    _draw_axes(right, published, title=labels[1], hatch="////")
    right.tick_params(axis="y", labelleft=False)
    left.set_ylabel("PQ in percent")
    pairs = (*measured.values(), *published.values())
    highest = max(max(one.value, one.high or 0.0) for pair in pairs for one in pair.values())
    left.set_ylim(0, 1.15 * highest)
    figure.legend(
        *left.get_legend_handles_labels(), ncols=len(SUBSETS), loc="upper right",
        bbox_to_anchor=(1, 1 - 0.5 / height),
    )  # fmt: skip
    return figure


def _draw_axes(axes: Axes, bars: Bars, *, title: str, hatch: str | None) -> None:
    axes.set_title(title, fontsize=9)
    for place, (subset, colour) in enumerate(SUBSETS.items()):
        offset = (place - (len(SUBSETS) - 1) / 2) * _WIDTH
        for position, pair in enumerate(bars.values()):
            one = pair[subset]
            axes.bar(
                position + offset, one.value, _WIDTH, color=colour, edgecolor="0.1", linewidth=0.6,
                hatch=hatch, label=f"{subset} classes" if position == 0 else None,
            )  # fmt: skip
            top = one.value
            if one.low is not None and one.high is not None:
                top = max(top, one.high)
                # Not errorbar: it refuses an interval that lies beside its value.
                axes.vlines(position + offset, one.low, one.high, color="0.1", linewidth=1)
                axes.scatter([position + offset] * 2, [one.low, one.high], marker="_", color="0.1")
            axes.annotate(
                f"{one.value:.1f}", (position + offset, top), (0, 2),
                textcoords="offset points", ha="center", va="bottom", fontsize=7,
            )  # fmt: skip
    axes.set_xticks(range(len(bars)), [name.replace(" ", "\n", 1) for name in bars])
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    axes.set_xlim(-0.6, len(bars) - 0.4)
