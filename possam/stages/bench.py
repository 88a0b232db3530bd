"""Stage ``bench``: measure, append to ``reports/bench/``, rewrite ``reports/bench.md``."""

import sys
from collections.abc import Sequence

from possam.checked_yaml import choose
from possam.errors import InputError


def bench(names: Sequence[str], *, repeats: int | None, threads: int) -> None:
    """Run the benchmarks ``names`` (none given: all).

    Args:
        repeats: turns of each case; None: the benchmark's own number.
        threads: of torch, on both sides.

    Raises:
        InputError: an unknown benchmark, or a number below one.
    """
    import torch

    from possam.bench.harness import measure, surroundings
    from possam.bench.journal import append, write_page
    from possam.bench.registry import BENCHMARKS

    for name in names:
        choose("benchmark", name, BENCHMARKS, "possam bench", "NAME")
    for option, value in (("--repeats", repeats), ("--threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"{option}: {value}: at least 1 is needed")
    torch.set_num_threads(threads)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    for name in names or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        say(f"{name}: {benchmark.what}")
        turns = benchmark.repeats if repeats is None else repeats
        where = surroundings(threads, benchmark.packages)
        cases = [measure(case, repeats=turns, say=say) for case in benchmark.cases()]
        path = append(name, {**where, "repeats": turns, "cases": cases})
        write_page(list(BENCHMARKS))
        for case in cases:
            result = f"{case['ours']['median_s']:.3g} s"
            for beside in (case, *case["others"]):
                if beside["ratio"] is not None:
                    ratio = beside["ratio"]["median"]
                    result += f", {ratio:.2f} times as fast as {beside['reference']}"
            say(f"{case['name']}: {result} ({path})")
