"""Runs that share the batches of a step end as they would by themselves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from possam.model.possam import PosSAM
from possam.runtime.errors import InputError, TrainingError
from possam.runtime.files import read_json, sha256_file
from possam.training import run as one_run
from possam.training.checkpoint_paths import checkpoints
from possam.training.distributed import single_process
from possam.training.loop import EndedEarlyError, train_run, train_runs
from possam.training.metrics import TIME_FIELDS
from possam.training.options import SAVE_AND_END
from possam.training.run import Run
from possam.training.run_files import RunFiles
from possam.training.targets import Batch
from tests.support.training_fakes import (
    FakeSource,
    loss_params,
    possam,
    text_embeddings,
    training_params,
    weights_metadata,
)

RUNS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no_iou": {"model": {"iou_head": False}, "loss": {"dice_weight": 2.0}},
    "longer": {"training": {"iterations": 8, "learning_rate": 3e-3, "milestones": (7,)}},
}
"""What differs: the model, the losses, the recipe."""


def a_run(folder: Path, name: str) -> dict[str, Any]:
    changes = RUNS[name]
    return {
        "model": possam(**changes.get("model", {})),
        "text": text_embeddings(),
        "training": training_params(**changes.get("training", {})),
        "loss": loss_params(**changes.get("loss", {})),
        "files": RunFiles(folder / name / "seed0", superseded=folder / "superseded" / name),
        "seed": 1,
        "metadata": weights_metadata(identity={"run": name}),
    }


def together(folder: Path, source: Any = None, **more: Any) -> list[Any]:
    return train_runs(
        [Run(**a_run(folder, name)) for name in RUNS],
        source=source or FakeSource(),
        process=single_process("cpu"),
        **more,
    )


def outcome(folder: Path, name: str) -> tuple[str, list[dict[str, Any]]]:
    directory = folder / name / "seed0"
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    curve = [read_line(line) for line in lines]
    return sha256_file(directory / "weights.safetensors"), curve


def read_line(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key not in TIME_FIELDS}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for name in RUNS:
        train_run(source=FakeSource(), process=single_process("cpu"), **a_run(folder, name))
    return folder


class Counting(FakeSource):
    """A source that counts the steps that it makes batches for, and may break down."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        super().__init__()
        self.steps: list[int] = []
        self._fails_at = fails_at

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        for step, batches in enumerate(super().batches(start, stop), start=start):
            if step == self._fails_at:
                raise KeyboardInterrupt
            self.steps.append(step)
            yield batches


def test_each_run_ends_as_by_itself_and_batches_are_made_once(tmp_path: Path, alone: Path) -> None:
    source = Counting()
    summaries = together(tmp_path, source)
    assert source.steps == list(range(8))
    for name, summary in zip(RUNS, summaries, strict=True):
        assert outcome(tmp_path, name) == outcome(alone, name)
        assert summary["together"] == 3
        assert summary["identity"] == read_json(alone / name / "seed0/training.json")["identity"]
    assert [summary["steps"] for summary in summaries] == [6, 6, 8]


def test_runs_that_stopped_at_different_steps_go_on_together(tmp_path: Path, alone: Path) -> None:
    # one by itself for some steps, one finished, one not begun
    finished, begun = a_run(tmp_path, "no_iou"), a_run(tmp_path, "longer")
    train_run(source=FakeSource(), process=single_process("cpu"), **finished)
    with pytest.raises(KeyboardInterrupt):
        train_run(source=Counting(fails_at=5), process=single_process("cpu"), **begun)
    source = Counting()
    together(tmp_path, source)
    assert source.steps == list(range(8))
    for name in RUNS:
        assert outcome(tmp_path, name) == outcome(alone, name)


@pytest.mark.parametrize("fails_at", [1, 3, 7])
def test_a_killed_group_resumes(tmp_path: Path, alone: Path, fails_at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        together(tmp_path, Counting(fails_at=fails_at))
    together(tmp_path)
    for name in RUNS:
        assert outcome(tmp_path, name) == outcome(alone, name)


def test_all_write_a_checkpoint_when_it_is_asked_for(tmp_path: Path, alone: Path) -> None:
    with pytest.raises(EndedEarlyError, match="after step 3 of 8"):
        together(tmp_path, asked=iter([0, 0, SAVE_AND_END]).__next__)
    for name in RUNS:
        kept = checkpoints(tmp_path / name / "seed0/checkpoints")
        assert [path.name for path in kept] == ["step_000000003", "step_000000002"]
    together(tmp_path)
    for name in RUNS:
        assert outcome(tmp_path, name) == outcome(alone, name)


class NeverFinite(PosSAM):
    """A model whose masks are not finite."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        for layer in output.layers:
            layer.mask_logits.data.mul_(float("nan"))
        return output


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_run, "MAX_CONSECUTIVE_SKIPS", 2)
    runs = {name: a_run(tmp_path, name) for name in RUNS}
    runs["no_iou"]["model"].__class__ = NeverFinite
    outcomes = train_runs(
        [Run(**run) for run in runs.values()], source=FakeSource(), process=single_process("cpu")
    )
    assert isinstance(outcomes[1], TrainingError) and "no_iou seed0: step 1" in str(outcomes[1])
    assert not (tmp_path / "no_iou/seed0/weights.safetensors").exists()
    assert checkpoints(tmp_path / "no_iou/seed0/checkpoints")[0].name == "step_000000002"
    for name in ("whole", "longer"):
        assert outcome(tmp_path, name) == outcome(alone, name)


def test_runs_of_other_batches_are_refused(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, name) for name in ("whole", "no_iou")]
    runs[1]["training"] = training_params(batch_size=4)
    with pytest.raises(ValueError, match="of the source is not"):
        train_runs([Run(**run) for run in runs], source=FakeSource(), process=single_process("cpu"))
    runs[1] = {**a_run(tmp_path, "no_iou"), "text": text_embeddings(num_classes=4)}
    with pytest.raises(InputError, match="3 classes, but the class names 4"):
        train_runs([Run(**run) for run in runs], source=FakeSource(), process=single_process("cpu"))
