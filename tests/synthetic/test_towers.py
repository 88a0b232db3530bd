"""The shipped towers reach their stated quality, and trainings repeat exactly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from possam.model.encoders.sam import ARCHITECTURES, build_sam
from possam.runtime.errors import InputError, TrainingError
from possam.runtime.files import read_json, sha256_file
from possam.synthetic.fitting import SceneSet, WeightAverage, render_scene_set
from possam.synthetic.pretrain_clip import ClipSettings, pool_regions, pretrain_clip
from possam.synthetic.pretrain_sam import (
    VARIANTS,
    SamSettings,
    asked_pixels,
    decode_clicks,
    mask_iou,
    pretrain_sam,
    weights_name,
)
from possam.synthetic.towers import (
    PROVENANCE_NAME,
    TowerSettings,
    inner_click,
    measure_quality,
    rebuild_towers,
    tower_files,
)

pytestmark = pytest.mark.slow

TOWERS = Path(__file__).resolve().parents[2] / "data" / "towers"
MEBIBYTE = 2**20
TINY_CLIP = ClipSettings(scenes=10, iterations=3, batch=4, crops=2)
TINY_SAM = SamSettings(scenes=10, iterations=3, batch=2, clicks=2)


def hashes(towers: Path) -> dict[str, str]:
    return {name: sha256_file(towers / name) for name in tower_files()}


def recorded(towers: Path) -> dict[str, str]:
    files = read_json(towers / PROVENANCE_NAME)["files"]
    return {name: entry["sha256"] for name, entry in files.items()}


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return render_scene_set(10, domain="web", seed=0)


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    parameters = read_json(TOWERS / PROVENANCE_NAME)["parameters"]
    return measure_quality(
        TOWERS,
        clip_scenes=parameters["clip_quality_scenes"],
        sam_scenes=parameters["sam_quality_scenes"],
    )


def test_shipped_files_are_those_of_the_provenance() -> None:
    assert hashes(TOWERS) == recorded(TOWERS)
    assert sum(path.stat().st_size for path in TOWERS.iterdir()) < 20 * MEBIBYTE


def test_stated_figures_come_out_again(figures: dict[str, Any]) -> None:
    """Another machine's kernels may flip a few borderline segments of some hundreds, not more."""
    stated = read_json(TOWERS / PROVENANCE_NAME)["quality"]
    assert figures.keys() == stated.keys()
    for tower, domains in stated.items():
        assert figures[tower].keys() == domains.keys()
        for domain, values in domains.items():
            assert figures[tower][domain] == pytest.approx(values, abs=0.01), (tower, domain)


def test_clip_knows_its_own_look_and_half_of_another(figures: dict[str, Any]) -> None:
    """As the real one: better in its own pictures' light, and able to compose colour and shape."""
    a, b = (figures["synthetic_clip"][domain] for domain in ("a", "b"))
    assert a["things_seen"] >= 0.7 and a["stuff"] >= 0.9
    assert 0.35 <= b["things_unseen"] <= b["things_seen"] + 0.1 < a["things_seen"]
    assert b["stuff"] < a["stuff"]
    # Of 80 classes, things that it never saw.
    assert figures["synthetic_clip"]["held"]["things"] >= 0.2


def test_larger_sams_are_better(figures: dict[str, Any]) -> None:
    for domain in ("a", "b"):
        chosen = [figures[variant][domain]["chosen"] for variant in VARIANTS]
        assert chosen[0] >= 0.45 and chosen == sorted(chosen)
        for variant in VARIANTS:
            assert figures[variant][domain]["oracle"] >= figures[variant][domain]["chosen"]


def test_rebuilding_repeats_exactly_and_writes_everything(
    scenes: SceneSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TowerSettings(
        clip=TINY_CLIP, sam=dict.fromkeys(VARIANTS, TINY_SAM), clip_quality_scenes=2,
        sam_quality_scenes=2,
    )  # fmt: skip
    # As without /dev/shm: this process does what two would.
    monkeypatch.setattr("possam.synthetic.towers.usable", lambda workers: 0)
    record = rebuild_towers(tmp_path / "towers", seed=0, settings=settings)
    assert {p.name for p in (tmp_path / "towers").iterdir()} == {*tower_files(), PROVENANCE_NAME}
    assert read_json(tmp_path / "towers" / PROVENANCE_NAME) == record
    assert hashes(tmp_path / "towers") == recorded(tmp_path / "towers")
    assert record["quality"].keys() == {"synthetic_clip", *VARIANTS}
    state = torch.get_rng_state()
    again = tmp_path / "again"
    pretrain_clip(out=again, seed=0, settings=TINY_CLIP, scenes=scenes)
    pretrain_sam(variant="synthetic_l", out=again, seed=0, settings=TINY_SAM, scenes=scenes)
    assert torch.equal(torch.get_rng_state(), state), "a training does not change the global seed"
    for path in again.iterdir():
        assert path.read_bytes() == (tmp_path / "towers" / path.name).read_bytes(), path.name
    pretrain_sam(variant="synthetic_l", out=again, seed=1, settings=TINY_SAM, scenes=scenes)
    name = weights_name("synthetic_l")
    assert (again / name).read_bytes() != (tmp_path / "towers" / name).read_bytes()


def test_a_rebuild_that_stopped_takes_over_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Towers of other settings are trained anew, and nothing is left beside the result."""
    monkeypatch.setattr("possam.synthetic.towers.usable", lambda workers: 0)
    good = TowerSettings(
        clip=TINY_CLIP, sam=dict.fromkeys(VARIANTS, TINY_SAM), clip_quality_scenes=2,
        sam_quality_scenes=2,
    )  # fmt: skip
    whole = rebuild_towers(tmp_path / "whole", settings=good)
    wild, longer = replace(TINY_SAM, lr=1e30, iterations=40), replace(TINY_SAM, iterations=4)
    stopped = replace(good, sam=good.sam | {"synthetic_h": longer, "synthetic_b": wild})
    with pytest.raises(TrainingError, match="synthetic_b: the loss is not finite"):
        rebuild_towers(tmp_path / "towers", settings=stopped)
    assert [path.name for path in tmp_path.glob("towers*")] == ["towers.parts"]
    capsys.readouterr()
    record = rebuild_towers(tmp_path / "towers", settings=good)
    taken = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert sorted(Path(part).name for part in taken) == ["synthetic_clip", "synthetic_l"]
    assert record["files"] == whole["files"] and hashes(tmp_path / "towers") == recorded(
        tmp_path / "whole"
    )
    assert not (tmp_path / "towers.parts").exists()


def test_towers_go_on_from_others_and_say_so(scenes: SceneSet, tmp_path: Path) -> None:
    """With a learning rate of almost nothing the weights stay what they were."""
    clip = replace(TINY_CLIP, image_lr=1e-12, text_lr=1e-12, weight_decay=0.0)
    sam = replace(TINY_SAM, lr=1e-12, weight_decay=0.0)
    settings = TowerSettings(
        clip=clip, sam=dict.fromkeys(VARIANTS, sam), clip_quality_scenes=2, sam_quality_scenes=2
    )
    record = rebuild_towers(tmp_path / "on", settings=settings, workers=1, start=TOWERS)
    assert record["inputs"] == hashes(TOWERS)
    before, after = (
        torch.load(folder / weights_name("synthetic_b"), weights_only=True)
        for folder in (TOWERS, tmp_path / "on")
    )
    assert all(torch.allclose(after[key], value, atol=1e-3) for key, value in before.items())
    with pytest.raises(InputError, match="name a folder of towers"):
        rebuild_towers(tmp_path / "none", settings=settings, start=tmp_path)
    assert not (tmp_path / "none").exists()


def test_a_training_that_diverges_says_so(scenes: SceneSet, tmp_path: Path) -> None:
    wild = SamSettings(iterations=40, batch=2, clicks=1, lr=1e30)
    with pytest.raises(TrainingError, match="synthetic_b: the loss is not finite"):
        pretrain_sam(variant="synthetic_b", out=tmp_path, seed=0, settings=wild, scenes=scenes)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="choose one of synthetic_b, synthetic_l, synthetic_h"):
        pretrain_sam(variant="vit_b", out=tmp_path, seed=0)


def test_batched_clicks_equal_segment_anythings_decoder() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = build_sam(ARCHITECTURES["synthetic_b"])
        embeddings = torch.randn(3, 64, 16, 16)
    clicks = torch.tensor([[10.0, 20.0], [64.0, 64.0], [127.0, 3.0]])
    with torch.no_grad():
        masks, iou = decode_clicks(sam, embeddings, clicks)
        for k in range(3):
            points = (clicks[k][None, None], torch.ones(1, 1))
            sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
            expected = sam.mask_decoder(
                image_embeddings=embeddings[k : k + 1],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            torch.testing.assert_close(masks[k], expected[0][0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(iou[k], expected[1][0], rtol=1e-4, atol=1e-5)


def test_inner_click_by_hand() -> None:
    mask = np.zeros((9, 12), bool)
    mask[2:7, 1:6] = True
    assert inner_click(mask) == (3, 4)
    edge = np.zeros((9, 12), bool)
    edge[0:5, 0:5] = True
    assert inner_click(edge) == (2, 2), "the image's edge is a boundary"


def test_mask_iou_by_hand() -> None:
    first = torch.tensor([[[True, True], [False, False]], [[False, False], [False, False]]])
    second = torch.tensor([[[True, False], [True, False]], [[False, False], [False, False]]])
    torch.testing.assert_close(mask_iou(first, second), torch.tensor([1 / 3, 0.0]))


def test_pooling_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    masks = torch.zeros(1, 3, 4, 4)
    masks[0, 0, :2, :2] = 1
    masks[0, 1, :, 2:] = 1
    torch.testing.assert_close(pool_regions(features, masks)[0, :, 0], torch.tensor([1.0, 3, 0]))


def test_a_click_asks_for_the_part_below_it_or_for_all() -> None:
    shaded = torch.tensor([[True, False, False], [True, True, False]]).expand(3, -1, -1)
    clicks = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    asked = asked_pixels(shaded, clicks, torch.tensor([False, False, True]))
    assert asked[0].tolist() == [[False, True, True], [False, False, True]]
    assert torch.equal(asked[1], shaded[0]) and asked[2].all()


def test_average_forgets_its_start() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 100.0)
    average = WeightAverage(layer, decay=0.5)
    torch.nn.init.constant_(layer.weight, 1.0)
    average.update(layer)
    average.copy_to(layer)
    # First decay: min(0.5, 2 / 11).
    assert layer.weight.item() == pytest.approx(100 * 2 / 11 + 9 / 11)
