"""Stage ``evaluate``: the stage for each kind of system that has evaluations."""

from possam.params.project import Project
from possam.params.tables import TRAINED
from possam.runtime.errors import InputError


def evaluate_system(
    project: Project,
    name: str,
    benchmark: str,
    *,
    seed: int | None,
    condition: str,
    device: str,
    workers: int | None,
) -> None:
    """Evaluate a run of ``runs.yaml``, or a system of ``external.yaml`` or ``training_free.yaml``.

    Args:
        seed, condition: only of runs; None and ``trained`` where they were not given.
        device: not for external systems, whose predictions no model makes.
        workers: only for external systems; None: not given.

    Raises:
        InputError: an argument that the kind of system does not have, or as its stage.
    """
    kind = "external" if name in project.external else ""
    if name in project.training_free:
        kind = "training-free"
    if kind and (seed is not None or condition != TRAINED):
        raise InputError(f"--seed, --condition: {name} is {kind}: it has neither")
    if kind == "external":
        from possam.stages.external import evaluate_external

        evaluate_external(project, name, benchmark, workers=1 if workers is None else workers)
        return
    if workers is not None:
        raise InputError(f"--workers: only predictions are scored by several; {name} has none")
    if kind:
        from possam.stages.training_free import evaluate_training_free

        evaluate_training_free(project, name, benchmark, device=device)
    else:
        from possam.stages.evaluate import evaluate

        evaluate(project, name, benchmark, seed=seed, condition=condition, device=device)
