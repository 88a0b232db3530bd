"""``python -m benchmarks``: measure, append to ``reports/bench/``, rewrite ``reports/bench.md``.

Run it from the repository's root. Curves are drawn, too: ``reports/bench/<benchmark>.png``.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from possam.runtime.errors import InputError, PossamError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure speed and memory beside the libraries that people use now. "
        "Writes reports/bench.md and reports/bench/; run it from the repository's root.",
        epilog="example: python -m benchmarks training evaluation --repeats 3",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks (default: all)")
    parser.add_argument("--list", action="store_true", help="print the benchmarks, measure nothing")
    parser.add_argument("--repeats", type=int, default=None, help="turns of each case or curve")
    parser.add_argument(
        "--threads", type=int, default=2, help="torch's threads, on both sides (default 2)"
    )
    given = parser.parse_args(arguments)
    try:
        if given.list:
            list_benchmarks()
        else:
            bench(given.names, repeats=given.repeats, threads=given.threads)
    except PossamError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def list_benchmarks() -> None:
    """Print the name of every benchmark, and what it measures."""
    from benchmarks.registry import BENCHMARKS

    width = max(map(len, BENCHMARKS))
    for name, benchmark in BENCHMARKS.items():
        print(f"{name:{width}}  {benchmark.what}")


def bench(names: Sequence[str], *, repeats: int | None, threads: int) -> None:
    """Run the benchmarks ``names`` (all if there are none).

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
        if name not in BENCHMARKS:
            raise InputError(f"unknown benchmark {name!r}; valid choices: {', '.join(BENCHMARKS)}")
    for option, value in (("--repeats", repeats), ("--threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"{option}: {value}: at least 1 is needed")
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        _report("torch sees no GPU: cases on a GPU are left out")
    for name in names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        _report(f"{name}: {benchmark.what}")
        turns = benchmark.repeats if repeats is None else repeats
        where = surroundings(threads, benchmark.packages)
        cases, curves = [], []
        for one in benchmark.cases():
            if isinstance(one, Case):
                cases.append(measure(one, repeats=turns, report=_report))
            else:
                curves.append(measure_curve(one, repeats=turns, report=_report))
        path = append(name, {**where, "repeats": turns, "cases": cases, "curves": curves})
        write_plot(name)
        write_page(list(BENCHMARKS))
        for case in cases:
            _report(f"{case['name']}: {_summary(case)} ({path})")
        for curve in curves:
            _report(f"{curve['name']}: {_growth(curve)} ({path})")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _summary(case: Mapping[str, Any]) -> str:
    text = f"{case['ours']['median_s']:.3g} s"
    for reference in (case, *case["others"]):
        if reference["ratio"] is not None:
            ratio = reference["ratio"]["median"]
            text += f", {ratio:.2f} times as fast as {reference['reference']}"
    return text


def _growth(curve: Mapping[str, Any]) -> str:
    """The fitted exponent; there is none if calls are shorter than the clock's resolution."""
    law = curve["fits"]["ours"]["median_s"]
    if law is None:
        return "too quick for the clock"
    fitted = f"exponent {law['exponent']:.2f} ± {law['error']:.2f}"
    return f"time against {curve['quantity']}: {fitted}" + (
        "" if law["holds"] else ", no power law"
    )


if __name__ == "__main__":
    sys.exit(main())
