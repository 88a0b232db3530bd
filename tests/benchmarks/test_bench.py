"""The harness of the benchmarks: order, numbers and files, but no speed."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from setuptools import find_packages

from benchmarks import __main__ as command
from benchmarks import journal, registry
from benchmarks.__main__ import bench
from benchmarks.harness import Benchmark, Case, measure, with_memory
from benchmarks.page import case_lines
from possam.runtime.errors import InputError
from tests.support.measured import Clock, measurement_of


def test_sides_take_turns_and_ratios_are_those_of_neighbours(clock: Clock) -> None:
    calls: list[str] = []
    takes = {"ours": iter([9.0, 1.0, 2.0, 4.0]), "theirs": iter([9.0, 3.0, 4.0, 40.0])}

    def side(name: str, result: float) -> float:
        calls.append(name)
        clock.now += next(takes[name])
        return result

    case = Case(
        name="x/y",
        reference="other 1.0",
        ours=lambda: side("ours", 1.5),
        theirs=lambda: side("theirs", 2.0),
        error=(lambda a, b: abs(a - b), "absolute"),
        items=4,
    )
    found = measure(case, repeats=3, report=lambda line: None)
    assert calls == ["theirs", "ours"] * 4, "the first call of each warms up"
    assert found["ours"]["seconds"] == [1.0, 2.0, 4.0]
    assert found["theirs"]["median_s"] == 4.0
    assert found["ratio"] == {"median": 3.0, "low": 2.0, "high": 10.0}
    assert found["ours"]["per_second"] == 2.0
    assert found["error"] == 0.5
    json.dumps(found)


def test_every_further_reference_takes_turns_and_has_its_own_ratio(
    clock: Clock, tmp_path: Path
) -> None:
    calls: list[str] = []

    def side(name: str, seconds: float, result: float) -> Any:
        def call() -> float:
            calls.append(name)
            clock.now += seconds
            return result

        return call

    case = Case(
        name="x/y",
        reference="other 1.0",
        ours=side("ours", 2.0, 1.0),
        theirs=side("theirs", 8.0, 1.0),
        others={"quick 2.0": side("quick", 1.0, 1.5), "slow 3.0": side("slow", 6.0, 3.0)},
        error=(lambda a, b: abs(a - b), "absolute"),
        target=3.0,
        target_others=1.0,
        target_memory=0.5,
    )
    found = measure(case, repeats=2, report=lambda line: None)
    assert calls == ["theirs", "quick", "slow", "ours"] * 3
    assert found["ratio"]["median"] == 4.0 and found["error"] == 0.0
    quick, slow = found["others"]
    assert (quick["reference"], quick["ratio"]["median"], quick["error"]) == ("quick 2.0", 0.5, 0.5)
    assert (slow["reference"], slow["ratio"]["median"], slow["error"]) == ("slow 3.0", 3.0, 2.0)

    run = {**measurement_of("x/y", 1.0, "2026-01-01T00:00:00"), "cases": [found]}
    journal.append("x", run, folder=tmp_path)
    journal.write_page(["x"], folder=tmp_path, page=tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| y | other 1.0 | 4.00 [4.00, 4.00] | 3 | 2 s | 8 s |" in page
    assert "| y | quick 2.0 | 0.50 [0.50, 0.50] | 1 | 2 s | 1 s |" in page
    assert "| y | slow 3.0 | 3.00 [3.00, 3.00] | 1 | 2 s | 6 s |" in page
    assert page.count("5.0e-01") == 1 and page.count("2.0e+00") == 1


def test_rates_shares_of_the_ceiling_and_slow_first_calls_are_reported(clock: Clock) -> None:
    takes = {"ours": iter([40.0, 2.0]), "theirs": iter([5.0, 4.0])}

    def side(name: str) -> None:
        clock.now += next(takes[name])

    case = Case(
        name="x/y",
        reference="other 1.0",
        ours=lambda: side("ours"),
        theirs=lambda: side("theirs"),
        unit="image",
        flops=6e12,
        ceiling=12e12,
        published=(0.4, "a paper"),
    )
    found = measure(case, repeats=1, report=lambda line: None)
    assert found["ours"]["first_s"] == 40 and found["theirs"]["first_s"] == 5
    assert found["ours"]["share_of_ceiling"] == 0.25
    assert found["theirs"]["share_of_ceiling"] == 0.125
    (note,) = case_lines({"x/y": (found, {})})[-1:]
    assert "images per second: 0.5 here, 0.25 the reference, 0.4 published (a paper)" in note
    assert "6 TFLOP per call as the reference does it; of the 12 TFLOP/s" in note
    assert "25 % here, 12 % the reference" in note
    assert "the first call took 40 s here" in note and "5 s the reference" not in note
    json.dumps(found)


def test_a_case_without_reference_has_no_ratio(clock: Clock) -> None:
    case = Case(name="x/alone", ours=lambda: None, target_seconds=2.0)
    found = measure(case, repeats=1, report=lambda line: None)
    assert found["ratio"] is None and found["theirs"] is None and found["memory_share"] is None


def test_memory_is_what_a_call_holds_at_most() -> None:
    def work() -> int:
        block = bytearray(96 << 20)
        block[::4096] = b"x" * len(block[::4096])
        del block
        return 7

    result, mib = with_memory(work)
    assert result == 7
    assert mib is None or 90 < mib < 130


def test_the_page_shows_the_newest_measurement_and_the_file_keeps_all(tmp_path: Path) -> None:
    journal.append("x", measurement_of("x/y", 0.5, "2026-01-01T00:00:00"), folder=tmp_path)
    path = journal.append("x", measurement_of("x/y", 0.25, "2026-01-02T00:00:00"), folder=tmp_path)
    assert [run["when"][:10] for run in json.loads(path.read_text())] == [
        "2026-01-01",
        "2026-01-02",
    ]
    journal.write_page(["x", "never measured"], folder=tmp_path, page=tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| y | other 1.0 | 2.50 [2.00, 3.00] | 2 | 250 ms | 625 ms |" in page
    assert "10 of 10 MiB, 50 % (target 60 %)" in page
    assert "measured 2026-01-02" in page and "2026-01-01" not in page
    assert "no GPU" in page


def test_a_file_without_measurements_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="not a list of measurements"):
        journal.append("x", measurement_of("x/y", 1.0, "2026"), folder=tmp_path)
    assert (tmp_path / "x.json").read_text() == "{}"


def test_the_command_measures_writes_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cases() -> Iterator[Case]:
        yield Case(
            name="tiny/a",
            reference="other",
            ours=lambda: 1,
            theirs=lambda: 1,
            others={"third": lambda: 1},
        )
        yield Case(name="tiny/b", ours=lambda: 1, target_seconds=5.0)

    tiny = Benchmark(what="nothing much", cases=cases, packages=("numpy", "no such"), repeats=2)
    monkeypatch.setattr(registry, "BENCHMARKS", {"tiny": tiny})
    monkeypatch.chdir(tmp_path)
    bench(["tiny"], repeats=None, threads=1)
    (run,) = json.loads(Path("reports/bench/tiny.json").read_text())
    assert run["repeats"] == 2 and len(run["cases"][0]["ours"]["seconds"]) == 2
    assert run["packages"]["no such"] == "not installed"
    page = Path("reports/bench.md").read_text()
    assert "| a | other |" in page and "| b |  |  | 5 s |" in page
    printed = capsys.readouterr().err
    assert "times as fast as other" in printed and "times as fast as third" in printed


@pytest.mark.parametrize(
    ("names", "repeats", "threads", "text"),
    [
        (["nothing"], None, 1, "unknown benchmark 'nothing'; valid choices: "),
        (["pipeline"], 0, 1, "--repeats"),
        (["pipeline"], None, 0, "--threads"),
    ],
)
def test_bad_arguments(names: list[str], repeats: int | None, threads: int, text: str) -> None:
    with pytest.raises(InputError, match=text):
        bench(names, repeats=repeats, threads=threads)


def test_the_command_line_passes_its_arguments_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(command, "bench", lambda names, **options: calls.append((names, options)))
        assert command.main(["training", "deformable", "--repeats", "3"]) == 0
        assert command.main([]) == 0
    assert calls == [
        (["training", "deformable"], {"repeats": 3, "threads": 2}),
        ([], {"repeats": None, "threads": 2}),
    ]
    assert command.main(["nothing"]) == 2
    assert "python -m benchmarks: unknown benchmark 'nothing'" in capsys.readouterr().err


def test_the_package_neither_contains_nor_imports_the_benchmarks() -> None:
    root = Path(__file__).resolve().parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = find_packages(str(root), **patterns["packages"]["find"])
    assert "possam.training" in found
    assert {name.partition(".")[0] for name in found} == {"possam"}
    for path in (root / "possam").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) benchmarks\b", path.read_text(), re.M), path
