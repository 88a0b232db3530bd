"""The sentences around a table: what its numbers are, and what they cannot say."""

from collections.abc import Mapping
from typing import Any

from possam.evaluation.metrics import EFFICIENCY, METRICS_OF
from possam.params.tables import EXTERNAL, LATER, TRAINING_FREE

Card = Mapping[str, Any]


def level(card: Card) -> str:
    """``95 %``."""
    return f"{100 * card['confidence']:g} %"


def introduction(card: Card) -> list[str]:
    """The paragraphs above a table: scale, warnings, how to read cells, and kinds of rows."""
    texts = [f"Scale: `{card['scale']}`, {card['scale_title']}."]
    if card["synthetic"]:
        texts.append(
            "> **Synthetic data.** Reproduced rows were measured on a procedural world with small "
            "towers. The published numbers are of the real COCO and ADE20K: the two are **not "
            "comparable**, and the differences say nothing about the method."
        )
    texts += [f"> **{change}.**" for change in code_changes(card)]
    value, seeds = "value", ", ".join(map(str, card["seeds"]))
    if (count := len(card["seeds"])) > 1:
        value = f"mean ± standard deviation over {count} trainings (seeds {seeds})"
    units = "All values in percent."
    if any(column["metric"] in METRICS_OF[EFFICIENCY] for column in card["columns"]):
        units = "FPS is in images per second, parameters in millions, all other values in percent."
    texts.append(
        f"{units} Reproduced: {value} [{level(card)} bootstrap interval over test "
        "images]; below it the published value and, in brackets, the difference."
    )
    if any(row["source"] == "reproduced" for row in card["rows"]):
        texts.append(_chance(card))
    if external_rows(card):
        texts.append(
            "External: predictions of another system, measured here by the same code; they do not "
            "depend on seeds."
        )
    if any(row["source"] == TRAINING_FREE for row in card["rows"]):
        texts.append(
            "Training-free: SAM's automatic masks, each named by CLIP's features inside it and "
            "merged like the others; measured here, nothing is trained, and no seed matters."
        )
    if any(row["source"] == LATER for row in card["rows"]):
        texts.append(
            "Published later: work that the paper could not know, as its authors report it, on the "
            "same benchmarks and trained on COCO."
        )
    return texts


def _chance(card: Card) -> str:
    """What another machine would give, and on which processors the seeds were trained."""
    text = (
        "The same commit gives other digits on another processor, about as another seed does: "
        f"`possam compare {card['table']}` tells whether a run of yours agrees within chance."
    )
    by_seed = card.get("processors", {})
    if len({tuple(found) for found in by_seed.values()}) > 1:
        each = "; ".join(f"seed {seed}: {', '.join(found)}" for seed, found in by_seed.items())
        text += f" The seeds were made on different processors ({each})."
    elif by_seed:
        text += f" Made on {', '.join(next(iter(by_seed.values())))}."
    return text


def code_changes(card: Card) -> list[str]:
    """One text per training behind the table and change of the code that it went on after."""
    found: dict[str, None] = {}
    for key, evaluation in card["evaluations"].items():
        run, seed, *_ = key.split("/")
        for change in evaluation.get("accepted_code", ()):
            versions = (_commit(change[when]["git"]) for when in ("before", "after"))
            found[
                f"Run {run}, {seed.replace('seed', 'seed ')}: the code changed after step "
                f"{change['steps']}, from commit {' to '.join(versions)}"
            ] = None
    return list(found)


def _commit(git: Mapping[str, Any]) -> str:
    return git["commit"][:10] + (" with changes" if git.get("dirty") else "")


def external_rows(card: Card) -> list[str]:
    """Names of the rows of external predictions."""
    return [row["row"] for row in card["rows"] if row["source"] == EXTERNAL]
