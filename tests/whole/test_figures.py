"""Every figure is made at smoke scale, says what it is from, and comes out the same again."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from possam.runtime.files import read_json, sha256_file
from tests.whole.conftest import REPOSITORY, Workspace
from tests.whole.test_bad_input import refused
from tests.whole.test_smoke import edited

pytestmark = pytest.mark.pipeline

FIGURES = yaml.safe_load((REPOSITORY / "params/figures.yaml").read_text())
CARDS = [f"results/smoke/figures/{name}.json" for name in FIGURES]


@pytest.fixture(scope="module")
def drawn(finished: Workspace) -> Workspace:
    """All figures, made by Snakemake."""
    finished.snakemake(*CARDS)
    return finished


def files(workspace: Workspace, name: str) -> tuple[Path, Path, Path]:
    folder = workspace.folder / "results/smoke/figures"
    return folder / f"{name}.png", folder / f"{name}.pdf", folder / f"{name}.json"


@pytest.mark.parametrize("name", FIGURES)
def test_both_files_are_there_and_the_card_says_what_they_show(drawn: Workspace, name: str) -> None:
    png, pdf, card_file = files(drawn, name)
    card = read_json(card_file)
    with Image.open(png) as image:
        image.verify()
        assert min(image.size) > 400
    assert pdf.read_bytes().startswith(b"%PDF")
    assert card["sha256"] == {"png": sha256_file(png), "pdf": sha256_file(pdf)}
    assert card["synthetic"] and card["scale"] == "smoke"
    assert card["parameters"]["kind"] == FIGURES[name]["kind"]
    assert "synthetic" in card["subtitle"]


def test_cards_name_their_inputs(drawn: Workspace) -> None:
    cards = {name: read_json(files(drawn, name)[2]) for name in FIGURES}
    run = read_json(drawn.folder / "results/smoke/runs/possam_h_coco/seed0/run.json")
    data = {
        name: read_json(drawn.folder / f"data/smoke/datasets/{name}_val/manifest.json")["content"]
        for name in ("ade20k", "coco")
    }
    for name in ("oversegmentation", "qualitative"):
        assert cards[name]["runs"]["possam_h_coco"] == {
            "seed": 0,
            "identity": run["identity"],
            "weights_sha256": run["weights_sha256"],
        }
        assert cards[name]["towers"] == {key: run["inputs"][key] for key in ("sam", "clip")}
    assert cards["feature_clusters"]["towers"] == cards["qualitative"]["towers"]
    assert cards["encoder_vs_decoder"]["towers"] == {"sam": run["inputs"]["sam"]}
    assert cards["qualitative"]["datasets"] == data
    for name in ("oversegmentation", "feature_clusters", "encoder_vs_decoder"):
        assert cards[name]["datasets"] == {"ade20k": data["ade20k"]}
        images = cards[name]["images"]
        assert len({image["id"] for image in images}) == FIGURES[name]["images"]
        assert images == sorted(images, key=lambda image: image["position"])
        raw = drawn.folder / "data/smoke/raw/synthetic_ade20k"
        for image in images:
            assert list(raw.rglob(image["file"])) and image["benchmark"] == "ade20k"
    evaluation = drawn.folder / "results/smoke/evaluations/possam_l_coco/seed0/ade20k/trained"
    metrics = read_json(evaluation / "evaluation.json")["variants"]["default"]
    measured = cards["seen_unseen"]["measured"]["PosSAM (L)"]
    for subset in ("seen", "unseen"):
        key = f"pq_{subset}"
        assert measured[subset] == [metrics["metrics"][key], *metrics["intervals"][key]]
    assert cards["seen_unseen"]["published"]["FC-CLIP"] == {"seen": 39.1, "unseen": 17.3}
    assert len(cards["training_curves"]["runs"]) == 8
    for entry in cards["training_curves"]["runs"]:
        log = drawn.folder / f"results/smoke/runs/{entry['run']}/seed0/metrics.jsonl"
        assert entry["metrics_sha256"] == sha256_file(log) and entry["iterations"] == 4


@pytest.mark.parametrize("name", ["oversegmentation", "feature_clusters", "seen_unseen"])
def test_a_figure_comes_out_the_same_again(drawn: Workspace, name: str) -> None:
    before = [path.read_bytes() for path in files(drawn, name)]
    drawn.possam("figure", name, "--scale", "smoke")
    assert [path.read_bytes() for path in files(drawn, name)] == before


def planned(workspace: Workspace) -> set[str]:
    """Figures that a dry run would make; nothing else may run."""
    output = workspace.snakemake("-n", "--quiet", "host", "--", *CARDS)
    assert set(re.findall(r"^rule (\w+):", output, re.MULTILINE)) <= {"figure"}, output
    return set(re.findall(r"figure=(\w+)", output))


def test_only_what_changed_is_drawn_again(drawn: Workspace) -> None:
    assert planned(drawn) == set()
    params = drawn.folder / "params"
    with edited(params / "figures.yaml", "Losses of the runs", "The losses of the runs"):
        assert planned(drawn) == {"training_curves"}
    with edited(params / "scales/smoke.yaml", "points_per_side: 8", "points_per_side: 9"):
        assert planned(drawn) == set(FIGURES) - {"training_curves", "seen_unseen", "error_budget"}


def test_bad_figures_are_refused(drawn: Workspace) -> None:
    assert "oversegmentation" in refused(drawn, "figure", "nothing", "--scale", "smoke")
    figures = drawn.folder / "params/figures.yaml"
    with edited(figures, "benchmarks: [ade20k, coco]", "benchmarks: [ade20k, nothing]"):
        message = refused(drawn, "figure", "qualitative", "--scale", "smoke")
        assert "figures.yaml" in message and "qualitative.benchmarks" in message
        assert "valid choices: ade20k, ade20k_full, coco" in message
        assert "figures.yaml" in refused(drawn, "check", "--scale", "smoke")
    with edited(figures, "images: 3", "images: 300"):
        message = refused(drawn, "figure", "qualitative", "--scale", "smoke")
        assert "images" in message and "12" in message
    run = drawn.folder / "results/smoke/runs/possam_h_coco/seed0/run.json"
    moved = run.rename(run.with_suffix(".away"))
    try:
        message = refused(drawn, "figure", "qualitative", "--scale", "smoke")
    finally:
        moved.rename(run)
    assert "possam train possam_h_coco --seed 0 --scale smoke" in message


def test_figures_of_the_paper_scale_can_be_planned(finished: Workspace) -> None:
    output = finished.snakemake("-n", "results/figures/qualitative.png")
    for line in (r"train\s+1", r"convert\s+3", r"figure\s+1"):
        assert re.search(line, output), line
