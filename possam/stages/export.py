"""Stage ``export``: a trained run as a folder for ``possam.load``, here or on a model hub."""

import csv
import shutil
from pathlib import Path

from possam.params.layout import Layout
from possam.params.project import Project
from possam.pictures.card import Figure, model_card
from possam.pictures.config import CARD, CONFIG, FileParams
from possam.pictures.files import locate
from possam.pictures.load import describe
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_directory, atomic_write, read_json, write_json
from possam.training.checkpoint import read_metadata


def export_model(
    project: Project, run: str, out: Path, *, seed: int | None = None, without_towers: bool = False
) -> None:
    """Write a run's weights, towers, description and card into ``out``, which appears complete.

    Args:
        run: a run of ``params/runs.yaml``, or a file of weights.
        out: new, or an exported folder, which is replaced.
        without_towers: leave out the synthetic towers, which the package ships. Towers that are
            published are never copied: the folder names them, and they are fetched on first use.

    Raises:
        InputError: the run is not trained, or was trained over other towers than the scale's.
    """
    layout, weights = Layout(project), _find_weights(project, run, seed)
    if out.exists() and not (out / CONFIG).is_file():
        raise InputError(f"{out}: is there and is no exported model; name a new folder")
    config = describe(weights, project)
    header = read_metadata(weights)
    towers = [each for each in (config.sam, config.clip, *config.clip_files) if each is not None]
    copied = [each for each in towers if each.asset is None and not without_towers]
    figures = find_figures(layout, header["identity"])
    card = model_card(
        config,
        identity=header["identity"],
        step=header["step"],
        vocabulary=header["vocabulary"],
        figures=figures,
    )
    with atomic_directory(out) as folder:
        for each in copied:
            shutil.copyfile(locate(each, [layout.assets]), folder / each.file)
        shutil.copyfile(weights, folder / weights.name)
        with atomic_write(folder / CARD) as stream:
            stream.write(card)
        write_json(folder / CONFIG, config.model_dump(mode="json"))
    print(f"{out}: {weights.name}, {_names(copied)}, {CONFIG}, {CARD}")
    if not figures:
        print("the card has no figures: no table has a row of these weights; make table1 writes it")


def _find_weights(project: Project, run: str, seed: int | None) -> Path:
    """The file ``run``, or the weights of the run of this name."""
    if Path(run).is_file():
        return Path(run)
    seed = project.scale.seeds[0] if seed is None else seed
    return Layout(project).run(run, seed) / "weights.safetensors"


def export_graphs(
    project: Project, run: str, out: Path, *, seed: int | None, words: str, stuff: str
) -> None:
    """Write a run as ONNX graphs into ``out``, with the embeddings of ``words``, if there are any.

    Raises:
        InputError: the run is not trained, ``out`` is another folder, or ONNX is not installed.
    """
    from possam.pictures.load import load_weights
    from possam.pictures.onnx_export import DESCRIPTION, export_onnx
    from possam.pictures.words import parse_words

    if out.exists() and not (out / DESCRIPTION).is_file():
        raise InputError(f"{out}: is there and holds no exported graphs; name a new folder")
    classes = parse_words(words) if words else []
    uncounted = [name for names in parse_words(stuff) for name in names] if stuff else []
    weights = _find_weights(project, run, seed)
    model = load_weights(weights, project=project, folders=[Layout(project).assets])
    vocabulary = model.vocabulary(classes, stuff=uncounted) if classes else None
    export_onnx(model, out, vocabulary=vocabulary)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _names(files: list[FileParams]) -> str:
    return ", ".join(each.file for each in files) or "no towers"


def find_figures(layout: Layout, identity: str) -> list[Figure]:
    """What the scale's tables, new or kept, measured with the training of this identity."""
    for folder in (layout.results, layout.kept):
        for path in sorted(folder.glob("table*.csv")):
            card = path.with_suffix(".json")
            if card.is_file() and (found := _figures(path, read_json(card), identity)):
                return found
    return []


def _figures(path: Path, card: dict[str, object], identity: str) -> list[Figure]:
    found, columns, groups = [], card.get("columns"), card.get("groups")
    if not isinstance(columns, list) or not isinstance(groups, dict):
        return []
    with open(path, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            for column in columns:
                key, group = column["key"], column.get("group", "")
                own = row.get(f"{group}_run_identity") == identity
                if own and row.get(f"{key}_low"):
                    values = (float(row[name]) for name in (key, f"{key}_low", f"{key}_high"))
                    found.append(Figure(groups.get(group, group), column["title"], *values))
    return found
