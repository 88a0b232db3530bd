"""``possam`` and ``python -m possam``: runs in the fork server if there is one, else here.

Snakemake calls this hundreds of times, so it imports only light modules.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise

from possam.runtime.environment import Environment

SERVED = frozenset({"features", "train", "evaluate", "figure", "table", "track", "report"})
"""The commands whose libraries the server has imported already."""


def served(arguments: Sequence[str]) -> bool:
    """Whether the server runs ``arguments``: one of :data:`SERVED` that does not wait for SLURM."""
    waits = "--launcher=slurm" in arguments or ("--launcher", "slurm") in pairwise(arguments)
    return bool(arguments) and arguments[0] in SERVED and not waits


def main() -> int:
    """Entry point. Returns the exit code."""
    arguments = sys.argv[1:]
    server = Environment.load().forkserver
    if server is not None and served(arguments):
        from possam.runtime import forkserver

        try:
            return forkserver.ask(server, arguments)
        except OSError as error:
            print(f"possam: no fork server at {server} ({error})", file=sys.stderr)
    from possam.cli import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
