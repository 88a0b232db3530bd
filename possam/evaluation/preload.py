"""For the fork server of :mod:`possam.evaluation.pool` alone: importing this makes workers ready.

Loading the compiled loops takes most of a second. What the server has loaded, its children have.
"""

from possam.evaluation import score  # noqa: F401
from possam.evaluation.runs import warm_up

warm_up()
