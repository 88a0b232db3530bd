"""Stage ``bench``: measure, append to ``reports/bench/``, rewrite ``reports/bench.md``.

Curves are drawn, too: ``reports/bench/<benchmark>.png``.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from possam.params.reading import choose
from possam.runtime.errors import InputError


def list_benchmarks() -> None:
    """Print the name of every benchmark, and what it measures."""
    from benchmarks.registry import BENCHMARKS

    width = max(map(len, BENCHMARKS))
    for name, benchmark in BENCHMARKS.items():
        print(f"{name:{width}}  {benchmark.what}")


def bench(names: Sequence[str], *, repeats: int | None, threads: int) -> None:
    """Run the benchmarks ``names`` (none given: all).

    Args:
        repeats: turns of each case or curve; None: the benchmark's own number.
        threads: of torch, on both sides.

    Raises:
        InputError: an unknown benchmark, or a number below one.
    """
    import torch

    from benchmarks.harness import Case, measure, measure_curve, surroundings
    from benchmarks.journal import append, write_page, write_plot
    from benchmarks.registry import BENCHMARKS

    for name in names:
        choose("benchmark", name, BENCHMARKS, "possam bench", "NAME")
    for option, value in (("--repeats", repeats), ("--threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"{option}: {value}: at least 1 is needed")
    torch.set_num_threads(threads)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if not torch.cuda.is_available():
        say("torch sees no GPU: cases on a GPU are left out")
    for name in names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        say(f"{name}: {benchmark.what}")
        turns = benchmark.repeats if repeats is None else repeats
        where = surroundings(threads, benchmark.packages)
        cases, curves = [], []
        for one in benchmark.cases():
            if isinstance(one, Case):
                cases.append(measure(one, repeats=turns, say=say))
            else:
                curves.append(measure_curve(one, repeats=turns, say=say))
        path = append(name, {**where, "repeats": turns, "cases": cases, "curves": curves})
        write_plot(name)
        write_page(list(BENCHMARKS))
        for case in cases:
            say(f"{case['name']}: {_summary(case)} ({path})")
        for curve in curves:
            say(f"{curve['name']}: {_growth(curve)} ({path})")


def _summary(case: Mapping[str, Any]) -> str:
    text = f"{case['ours']['median_s']:.3g} s"
    for beside in (case, *case["others"]):
        if beside["ratio"] is not None:
            ratio = beside["ratio"]["median"]
            text += f", {ratio:.2f} times as fast as {beside['reference']}"
    return text


def _growth(curve: Mapping[str, Any]) -> str:
    """Its median seconds are above zero wherever the clock is finer than the call."""
    law = curve["fits"]["ours"]["median_s"]
    if law is None:
        return "too quick for the clock"
    fitted = f"exponent {law['exponent']:.2f} ± {law['error']:.2f}"
    return f"time against {curve['quantity']}: {fitted}" + (
        "" if law["holds"] else ", no power law"
    )
