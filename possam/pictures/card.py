"""A model card: what a folder holds, how it was trained and measured, and what it is not for."""

from collections.abc import Sequence
from typing import NamedTuple

from possam.pictures.config import ModelConfig
from possam.runtime.version import __version__


class Figure(NamedTuple):
    """A measured value in percent with its interval; ``group``: training set -> test set."""

    group: str
    metric: str
    value: float
    low: float
    high: float


_LICENCE = {
    True: "Apache-2.0 for these weights; those of towers that are not in the folder are their own.",
    False: (
        "Stated by nobody yet: the terms of the data that it was trained on hold (ADE20K allows "
        "research and education only); whoever publishes the folder names a licence here. Towers "
        "that are not in the folder have their own."
    ),
}
_LIMITS = {
    True: (
        "It knows only the synthetic world that it was trained on: flat scenes of coloured shapes "
        "on textures, 128 x 128 pixels. On photographs its segments mean nothing. Its figures are "
        "not comparable with the paper's."
    ),
    False: (
        "It names what its words say, right or wrong: check segments before anything depends on "
        "them."
    ),
}


def model_card(
    config: ModelConfig,
    *,
    identity: str,
    step: int,
    vocabulary: Sequence[Sequence[str]],
    figures: Sequence[Figure],
) -> str:
    """Markdown, with the header that model hubs read.

    Args:
        identity: of the training; step: its finished steps; vocabulary: the classes trained on.
        figures: measured with these weights; empty: the card says that there are none.
    """
    title = f"PosSAM {config.name}" + (" (synthetic)" if config.synthetic else "")
    files = [each for each in (config.sam, config.clip, *config.clip_files) if each is not None]
    lines = [
        "---",
        f"license: {'apache-2.0' if config.synthetic else 'other'}",
        "library_name: possam",
        "pipeline_tag: image-segmentation",
        "tags: [panoptic-segmentation, open-vocabulary"
        + (", synthetic]" if config.synthetic else "]"),
        "---",
        f"# {title}",
        "",
        "An open-vocabulary panoptic segmenter (PosSAM, arXiv 2403.09620, an independent "
        "implementation).",
        "",
        "```python",
        "import possam",
        "",
        'model = possam.load("this/folder")',
        'vocabulary = model.vocabulary([["red disc"], "grass"], stuff=["grass"])',
        'result = model.segment("picture.png", vocabulary)',
        "```",
        "",
        "## Data",
        "",
        f"Trained at scale `{config.scale}` for {step} steps over {len(vocabulary)} classes: "
        + "; ".join(", ".join(names) for names in vocabulary)
        + ".",
        "",
        "## Figures",
        "",
        *_table(figures),
        "",
        "## Limits",
        "",
        _LIMITS[config.synthetic],
        "",
        "## Files and hashes",
        "",
        f"Training {identity}; written by possam {__version__}.",
        "",
        *(f"- `{each.file}`: sha256 {each.sha256}" for each in files),
        *([f"- `{config.weights.file}`: sha256 {config.weights.sha256}"] if config.weights else []),
        "",
        "## Licence",
        "",
        _LICENCE[config.synthetic],
    ]
    return "\n".join(lines) + "\n"


def _table(figures: Sequence[Figure]) -> list[str]:
    if not figures:
        return ["Not measured: no table at hand has a row of these weights."]
    head = ["In percent, with 95 % intervals over the test images:", ""]
    rows = ["| training -> test | metric | value | interval |", "|---|---|---|---|"]
    rows += [
        f"| {each.group} | {each.metric} | {each.value:.1f} | [{each.low:.1f}, {each.high:.1f}] |"
        for each in figures
    ]
    return head + rows
