"""Curves: how they are measured and shown, and that small ones run."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import harness, journal, registry, scaling, score_stream
from benchmarks.__main__ import bench, list_benchmarks
from benchmarks.harness import Benchmark, Case, Curve, measure_curve
from benchmarks.post_processing import PostProcessing, difference, random_prediction
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.score import measure_predictions
from possam.model.segmenter import Segmenter
from possam.params.project import Project
from tests.support.measured import Clock, measurement_of
from tests.support.model_fakes import SMALL, FakeClip, FakeSam, small_possam


def curve_of(clock: Clock, takes: dict[int, float], calls: list[int] | None = None) -> Curve:
    """A call of size n takes ``takes[n]`` seconds; the reference, but for the last, twice that."""

    def call(size: int, factor: float) -> Any:
        def work() -> float:
            clock.now += factor * takes[size]
            if calls is not None and factor == 1:
                calls.append(size)
            return float(size)

        return work

    points = {
        size: Case(
            name=f"x/{size}",
            reference="other 1.0" if size != max(takes) else "",
            ours=call(size, 1),
            theirs=call(size, 2) if size != max(takes) else None,
            note="the reference is left out" if size == max(takes) else "",
        )
        for size in takes
    }
    return Curve(name="x/classes", quantity="classes", points=points, note="on a made-up clock")


def test_all_sizes_take_turns_and_both_sides_are_fitted(clock: Clock) -> None:
    calls: list[int] = []
    takes = {1: 0.5, 2: 2.0, 4: 8.0, 8: 32.0}
    found = measure_curve(curve_of(clock, takes, calls), repeats=2, report=lambda line: None)
    assert calls[0] == 1, "what is set up once"
    assert calls[1:] == [1, 2, 4, 8] * 3, "one round warms up"
    assert [point["size"] for point in found["points"]] == [1, 2, 4, 8]
    assert [point["ours"]["median_s"] for point in found["points"]] == list(takes.values())
    assert found["points"][0]["ratio"]["median"] == 2.0
    assert found["points"][3]["theirs"] is None
    ours, theirs = (found["fits"][side]["median_s"] for side in ("ours", "theirs"))
    assert ours["exponent"] == pytest.approx(2) and ours["factor"] == pytest.approx(0.5)
    assert ours["holds"] and ours["error"] < 1e-9 and len(ours["local"]) == 3
    assert theirs["exponent"] == pytest.approx(2) and theirs["factor"] == pytest.approx(1)
    json.dumps(found, allow_nan=False)


def test_without_three_values_there_is_no_fit(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = iter([None, 5.0, 1.0, 5.0, -0.1])
    monkeypatch.setattr(harness, "with_memory", lambda call, device: (call(), next(memory)))
    curve = curve_of(clock, {1: 1.0, 2: 1.0, 4: 1.0})
    found = measure_curve(curve, repeats=1, report=lambda line: None)
    assert found["fits"]["theirs"]["median_s"] is None, "two points"
    assert found["fits"]["ours"]["peak_memory_mib"] is None, "a call cannot hold less than nothing"
    assert found["fits"]["ours"]["median_s"]["exponent"] == pytest.approx(0)


@pytest.mark.parametrize("sizes", [(1, 2), (1, 4, 2), (0, 1, 2)])
def test_a_curve_needs_three_ascending_sizes(sizes: tuple[int, ...]) -> None:
    points = {size: Case(name="x", ours=lambda: 1) for size in sizes}
    with pytest.raises(ValueError, match="ascending"):
        Curve(name="x/y", quantity="z", points=points)


def test_page_and_plot(clock: Clock, tmp_path: Path) -> None:
    takes = {1: 0.5, 10: 0.6, 100: 1.5, 1000: 10.5}
    found = measure_curve(curve_of(clock, takes), repeats=1, report=lambda line: None)
    for point, mib in zip(found["points"], (10.0, 20.0, 40.0, 80.0), strict=True):
        point["ours"]["peak_memory_mib"] = mib
    memory = {"exponent": 0.301, "error": 0.002, "factor": 10.0, "residual": 0.0123}
    memory |= {"worst": 0.01, "local": [0.3] * 3, "holds": True}
    found["fits"]["ours"]["peak_memory_mib"] = memory
    found["target_memory_exponent"] = 0.1
    record = {**measurement_of("x/y", 1.0, "2026-01-01T00:00:00"), "curves": [found]}
    journal.append("x", record, folder=tmp_path / "bench")
    # Measured again without the curve: the older one is still the newest of its name.
    journal.append(
        "x", measurement_of("x/y", 1.0, "2026-01-02T00:00:00"), folder=tmp_path / "bench"
    )
    journal.write_plot("x", folder=tmp_path / "bench")
    journal.write_page(["x"], folder=tmp_path / "bench", page=tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "](bench/x.png)" in page
    law = found["fits"]["ours"]["median_s"]
    slope = f"{law['exponent']:.2f} ± {law['error']:.2f} [{100 * law['residual']:.1f} %]"
    row = f"| classes | classes | 1 to 1,000 | {slope}, no power law | 0.30 ± 0.00 [1.2 %] |"
    assert f"{row} at most 0.1 |" in page
    assert "| classes, other 1.0 | classes | 1 to 100 |" in page
    assert "| classes | 1,000 | 10.5 [10.5, 10.5] s | 80 MiB |  |  |  |  |" in page
    assert "| classes | 1 | 500 [500, 500] ms | 10 MiB | 1 [1, 1] s |" in page
    assert "exponents between neighbouring sizes: 0.08, 0.40, 0.85" in page
    assert "- classes at 1,000: the reference is left out." in page
    assert "2026-01-01, " in page and "2026-01-02, " in page
    with Image.open(tmp_path / "bench" / "x.png") as image:
        assert image.format == "PNG" and image.width > 300


def test_the_command_measures_curves_and_lists(
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def cases() -> Iterator[Case | Curve]:
        yield Case(name="tiny/a", ours=lambda: 1)
        yield curve_of(clock, {1: 1.0, 2: 2.0, 4: 4.0})

    tiny = Benchmark(what="nothing much", cases=cases, packages=(), repeats=1)
    monkeypatch.setattr(registry, "BENCHMARKS", {"tiny": tiny})
    monkeypatch.chdir(tmp_path)
    bench(["tiny"], repeats=None, threads=1)
    (run,) = json.loads(Path("reports/bench/tiny.json").read_text())
    assert [len(run[key]) for key in ("cases", "curves")] == [1, 1]
    assert Path("reports/bench/tiny.png").is_file()
    assert "time against classes: exponent 1.00 ± 0.00" in capsys.readouterr().err
    list_benchmarks()
    assert capsys.readouterr().out == "tiny  nothing much\n"


@pytest.fixture
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    parts = FakeSam(), FakeClip(), small_possam()
    return Segmenter(sam=parts[0], clip=parts[1], possam=parts[2], precision="fp32").eval()


@pytest.fixture
def project() -> Any:
    """The parameters that the curves read, those of the model small."""
    scale = Project("paper").scale
    model = {k: v for k, v in SMALL.items() if k in type(scale.model).model_fields}
    few = {"bootstrap_samples": 20}
    return SimpleNamespace(
        scale=scale.model_copy(
            update={
                "model": scale.model.model_copy(update=model),
                "inference": scale.inference.model_copy(update={"instance_top_k": 10}),
                "evaluation": scale.evaluation.model_copy(update=few),
            }
        )
    )


@torch.inference_mode()
def test_every_curve_runs_small(segmenter: Segmenter, project: Any, tmp_path: Path) -> None:
    curves = [
        scaling.network(segmenter, (32, 48, 64)),
        scaling.post_processing(segmenter, project, (32, 48, 64)),
        scaling.vocabularies(segmenter, project, (4, 8, 16), side=64),
        scaling.queries(segmenter, project, (3, 5, 9), side=64),
        scaling.scoring(tmp_path, project, (1, 2, 3)),
    ]
    for curve in curves:
        found = measure_curve(curve, repeats=1, report=lambda line: None)
        assert all(point["ours"]["median_s"] > 0 for point in found["points"])
        assert (curve.name == "scaling/classes") == (
            found["fits"]["theirs"]["median_s"] is not None
        )


@torch.inference_mode()
def test_what_grows_is_what_the_curve_says(
    segmenter: Segmenter, project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = scaling.network(segmenter, (32, 48, 64)).points
    assert [network[side].ours().image_size for side in network] == [(s, s) for s in (32, 48, 64)]
    sides = scaling.post_processing(segmenter, project, (32, 48, 64)).points
    assert [sides[side].ours()[1].shape for side in sides] == [(s, s) for s in (32, 48, 64)]
    queries: list[int] = []
    original = PostProcessing.results

    def spy(self: PostProcessing, raw: Any) -> Any:
        queries.append(raw.mask_logits.shape[1])
        return original(self, raw)

    monkeypatch.setattr(PostProcessing, "results", spy)
    for case in scaling.queries(segmenter, project, (3, 5, 9), side=64).points.values():
        case.ours()
    assert queries == [3, 5, 9]
    images = scaling.scoring(tmp_path, project, (1, 2, 3)).points
    found = {number: case.ours()[0] for number, case in images.items()}
    assert {number: len(statistics.image_ids) for number, statistics in found.items()} == {
        1: 1,
        2: 2,
        3: 3,
    }


@torch.inference_mode()
def test_what_follows_the_pixel_decoder_gives_what_the_whole_gives(
    segmenter: Segmenter, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "randint", lambda *a, **k: torch.full((1, 3, 64, 64), 90.0))
    predicted: list[Any] = []
    monkeypatch.setattr(PostProcessing, "results", lambda self, raw: predicted.append(raw))
    scaling.queries(segmenter, project, (7, 8, 9), side=64).points[7].ours()
    # The heads and the mask decoder are built with seed 0 there; give these weights to the whole.
    other = small_possam(seed=0)
    other.decoder.pyramid = segmenter.possam.decoder.pyramid
    other.decoder.pixel_decoder = segmenter.possam.decoder.pixel_decoder
    towers = segmenter.features
    whole = Segmenter(sam=towers.sam, clip=towers.clip, possam=other.eval(), precision="fp32")
    expected = whole(torch.full((1, 3, 64, 64), 90.0))
    assert torch.allclose(predicted[0].mask_logits, expected.mask_logits, atol=1e-5)
    assert torch.allclose(predicted[0].ldp_embeddings, expected.ldp_embeddings, atol=1e-5)


@torch.inference_mode()
def test_post_processing_and_its_reference_agree(segmenter: Segmenter, project: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    embed_dim = segmenter.clip.embed_dim
    raw = random_prediction(64, queries=40, embed_dim=embed_dim, generator=generator)
    task = PostProcessing(
        raw,
        segmenter=segmenter,
        inference=project.scale.inference,
        classes=12,
        generator=generator,
    )
    ours, theirs = task.ours(), task.naive()
    assert difference(ours, theirs) < 1e-5
    assert len(ours[2]), "there are instances"
    assert len(ours[0].unique()) > 2, "there are segments"
    assert difference(ours, (theirs[0], (theirs[1] + 1) % 12, theirs[2])) == 1.0
    assert task.naive_gib == (40 + 12) * 64 * 64 * 4 / 2**30


@torch.inference_mode()
def test_a_reference_that_does_not_fit_is_left_out_with_its_size(
    segmenter: Segmenter, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 7 masks and 4, 8 or 16 classes of 64 x 64 floats: 0.17, 0.23 and 0.35 MiB.
    monkeypatch.setattr(scaling, "free_memory_gib", lambda: 0.30 / 1024 / scaling.SPARE)
    points = scaling.vocabularies(segmenter, project, (4, 8, 16), side=64).points
    assert [case.theirs is None for case in points.values()] == [False, False, True]
    assert not points[8].note and "0.0 GiB" in points[16].note


def test_free_memory_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 4194304 kB\nMemAvailable:    3145728 kB\n")
    monkeypatch.setattr(harness, "_MEMORY", file)
    assert harness.free_memory_gib() == 3.0
    monkeypatch.setattr(harness, "_MEMORY", tmp_path / "none")
    assert harness.free_memory_gib() == harness.hardware()["memory_gib"]


def test_the_stream_is_scored_as_what_it_is(tmp_path: Path) -> None:
    dataset = score_stream.write_stream(tmp_path, images=27, classes=9, seed=1)
    assert len({record.panoptic for record in dataset.images}) == score_stream.DISTINCT
    assert dataset.images[25].panoptic == dataset.images[0].panoptic
    settings = EvaluationOptions(
        bootstrap_samples=2,
        bootstrap_seed=0,
        confidence=0.95,
        check_panopticapi=False,
        batch_size=1,
        compile="none",
        precision="fp32",
    )
    path = score_stream.write_predictions(tmp_path / "one.json", dataset)
    statistics, found = measure_predictions(
        dataset=dataset,
        predictions=path,
        segmentations=tmp_path / "predicted",
        evaluation=settings,
    )
    assert statistics.panoptic is not None
    # Of 20 segments an image, every fifth is predicted as the next class.
    assert statistics.panoptic.tp.sum() <= 27 * 16
    assert statistics.panoptic.tp.sum() > 27 * 12
    assert 0 < found["metrics"]["miou"] < 100
