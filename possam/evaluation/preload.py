"""For the fork server of scoring alone: importing this makes workers ready.

Loading the compiled loops takes most of a second. What the server has loaded, its children have.
"""

import contextlib

from possam.evaluation import score  # noqa: F401
from possam.evaluation.runs import warm_up
from possam.runtime.errors import PossamError

with contextlib.suppress(PossamError):  # the first image will raise it, where it can be caught
    warm_up()
