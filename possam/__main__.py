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
    try:
        from possam.cli import main as run

        return run(arguments)
    except (ImportError, OSError) as error:  # what the command line itself needs
        from possam.runtime.faults import explain

        if (reason := explain(error)) is None:
            raise
        print(f"possam: {reason}", file=sys.stderr)
    if arguments[:1] == ["doctor"]:
        from possam.stages.doctor import doctor

        given = [value for option, value in pairwise(arguments) if option == "--scale"]
        doctor(given[-1] if given else Environment.load().scale)
    return 2


if __name__ == "__main__":
    sys.exit(main())
