"""What scoring's fork server imports, so that its workers start with the compiled loops loaded.

Loading them takes most of a second.
"""

import contextlib

from possam.evaluation import score  # noqa: F401
from possam.evaluation.run_lengths import warm_up
from possam.runtime.errors import PossamError

with contextlib.suppress(PossamError):  # the first image raises it again, where it is caught
    warm_up()
