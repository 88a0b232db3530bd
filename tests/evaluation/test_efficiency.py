"""Parameter counts: the paper's Table 0.B.1, and what is counted."""

import csv
from pathlib import Path

import pytest

from possam.evaluation.efficiency import ParameterCount, count_parameters
from possam.model.encoders.clip import load_clip
from possam.model.encoders.sam import ARCHITECTURES, SamEncoder, build_sam
from possam.model.options import ModelOptions
from possam.model.possam import build_possam
from possam.params.project import Project
from possam.stages.efficiency import millions, print_parameters
from tests.support.parity_report import Parity

PARAMS = Path(__file__).resolve().parents[2] / "params"
CLIP_CONFIG = PARAMS.parent / "data" / "towers" / "synthetic_clip.json"
CLIP = 351_772_609
FROZEN = {"b": 441_443_521, "l": 660_050_881, "h": 988_798_657}


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, str]]:
    with open(PARAMS / "published" / "table8_efficiency.csv", newline="") as stream:
        return {row["method"]: row for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def counts() -> dict[str, ParameterCount]:
    scale = Project("paper", folder=PARAMS).scale
    assert isinstance(scale.towers.clip.config, str)
    return {
        size: count_parameters(
            sam_architecture=tower.architecture,
            clip_config=scale.towers.clip.config,
            model=scale.model,
        )
        for size, tower in scale.towers.sam.items()
    }


@pytest.mark.parity("parameters")
def test_frozen_parameters_are_the_papers(
    counts: dict[str, ParameterCount], published: dict[str, dict[str, str]], parity: Parity
) -> None:
    assert counts.keys() == FROZEN.keys()
    for size, count in counts.items():
        parity.equal(count.frozen, FROZEN[size])
        printed = published[f"PosSAM ({size.upper()})"]["frozen_m"]
        parity.equal(millions(count.frozen), float(printed))


@pytest.mark.parity("parameters")
def test_trainable_parameters_are_the_papers_within_one_percent(
    counts: dict[str, ParameterCount], published: dict[str, dict[str, str]], parity: Parity
) -> None:
    assert len({count.trainable for count in counts.values()}) == 1
    for size, count in counts.items():
        printed = float(published[f"PosSAM ({size.upper()})"]["trainable_m"])
        parity.close(count.trainable, printed * 1e6, bound=0.01)
        assert count.total == count.trainable + count.frozen


def test_a_real_model_has_as_many_parameters_as_the_meta_device_counts() -> None:
    """A CLIP and a SAM small enough to be built, with and without SAM."""
    widths = Project("smoke", folder=PARAMS).scale.model.model_dump()
    stages = {"backbone": "clip", "pyramid": "stages", "pooling": "region", "iou_head": False}
    clip = load_clip(config=CLIP_CONFIG, checkpoint=None, random_init=True)
    sam = SamEncoder(build_sam(ARCHITECTURES["synthetic_b"]).image_encoder)
    shared = {
        "clip_channels": clip.dense_channels,
        "embed_dim": clip.embed_dim,
        "seed": 0,
    }
    for tower, channels, fields in (
        ("synthetic_b", [sam.channels], widths),
        (None, clip.stage_channels, widths | stages),
    ):
        model = ModelOptions.model_validate(fields)
        built = build_possam(model, backbone_channels=channels, **shared)
        count = count_parameters(sam_architecture=tower, clip_config=CLIP_CONFIG, model=model)
        assert count.trainable == sum(parameter.numel() for parameter in built.parameters())
        frozen = [clip] if tower is None else [clip, sam]
        assert count.frozen == sum(p.numel() for module in frozen for p in module.parameters())


def test_millions_are_cut_off_as_in_the_paper() -> None:
    assert [millions(n) for n in (441_443_521, 660_050_881, 988_798_657)] == [441.4, 660.0, 988.7]
    assert millions(99_999) == 0.0


def test_the_command_prints_a_line_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    print_parameters(Project("paper", folder=PARAMS))
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("  ")[0]: line for line in lines[2:]}
    assert list(rows)[:3] == [f"PosSAM ({s})" for s in "BLH"]
    assert "441,443,521" in rows["PosSAM (B)"] and "988,798,657" in rows["PosSAM (H)"]
    assert "441,443,521" in rows["two_way_9_b_coco"]
    assert f"{CLIP:,}" in rows["fcclip_coco"]  # no SAM is counted
