"""Stage ``evaluate`` for systems of ``params/external.yaml``: predictions instead of a model."""

import sys
import time

from possam.datasets.class_names import seen_classes
from possam.datasets.format import ConvertedDataset
from possam.evaluation.score import NOTES, measure_predictions
from possam.evaluation.summary import count_parts, write_variants
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.tables import DEFAULT_VARIANT, EXTERNAL, NO_SEED
from possam.pipeline.external import find_external, hash_predictions, prediction_files
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json
from possam.stages.common import StageRecord, code_identity

EXTERNAL_CODE = ("possam.stages.external",)
"""Entry points of the code that turns predictions into figures, for its hash. No model is part of
it: no module that builds one is imported here."""


def evaluate_external(project: Project, name: str, benchmark: str, *, workers: int) -> None:
    """Score a system's predictions on ``benchmark`` and write ``evaluation.json``.

    The result has the form of a run's, with one variant and no seed. It is the same for any number
    of ``workers`` (processes).

    Raises:
        InputError: as :func:`prediction_files`, or the predictions are malformed or incomplete;
            an earlier result stays.
    """
    if workers < 1:
        raise InputError(f"--workers: {workers}: at least 1 is needed")
    started = time.time()
    entry = find_external(project, name, benchmark)
    paths = prediction_files(project, name, benchmark)
    layout, settings = Layout(project), project.scale.evaluation
    test = project.benchmark(benchmark)
    dataset = ConvertedDataset.open(layout.dataset(test.dataset, test.split))
    training_set = ConvertedDataset.open(layout.dataset(entry.trained_on, "train"))
    inputs = {"dataset": dataset.manifest["content"], "predictions": hash_predictions(paths)}
    parameters = {
        "external": name,
        "benchmark": benchmark,
        "trained_on": entry.trained_on,
        "category_ids": entry.category_ids,
        "evaluation": settings.model_dump(mode="json"),
    }
    record = StageRecord("external", parameters, inputs, started=started)
    seen = seen_classes(dataset.vocabulary, training_set.vocabulary)
    statistics, found = measure_predictions(
        dataset=dataset,
        predictions=paths["predictions"],
        segmentations=paths.get("segmentations"),
        category_ids=entry.category_ids,
        evaluation=settings,
        seen=seen,
        metrics=test.metrics,
        workers=workers,
    )
    for note in found["protocol"].get(NOTES, []):
        print(f"possam evaluate: WARNING: {name}, {benchmark}: {note}", file=sys.stderr)
    identity = {
        "run": name,
        "seed": NO_SEED,
        "condition": EXTERNAL,
        **parameters,
        "scale": project.name,
        "synthetic": project.scale.synthetic,
        "run_identity": inputs["predictions"],
        "inputs": inputs,
        "code": code_identity(EXTERNAL_CODE),
    }
    result = {**identity, "identity": hash_json(identity), "counts": count_parts(dataset, seen)}
    result["variants"] = {DEFAULT_VARIANT: found}
    out = layout.evaluation(name, NO_SEED, benchmark, EXTERNAL)
    write_variants(out, result, {DEFAULT_VARIANT: statistics})
    record.write(out)
