"""Stage ``evaluate``: one run on one benchmark, trained or as a control that must score low."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from possam.datasets.class_names import seen_classes
from possam.datasets.format import ConvertedDataset
from possam.evaluation.efficiency import count_parameters, measure_efficiency
from possam.evaluation.evaluate import evaluate_run
from possam.evaluation.half_precision import with_decoders_in
from possam.model.ops.compilation import compiled
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.tables import CONDITIONS, DEFAULT_VARIANT
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json, sha256_file
from possam.runtime.gpu_driver import check_device
from possam.stages.common import (
    StageRecord,
    clip_config,
    code_identity,
    finished_run,
    frozen_hashes,
    set_up_process,
)
from possam.stages.models import embed_names, load_segmenter


def shuffle_names(vocabulary: Sequence[tuple[str, ...]], *, seed: int) -> list[tuple[str, ...]]:
    """The names of a control: every class gets another class's (a seeded derangement).

    Raises:
        InputError: fewer than two classes (nothing to exchange).
    """
    if len(vocabulary) < 2:
        raise InputError("shuffled_names: at least two classes are needed")
    # A cyclic shift of a random order moves every class.
    order = np.random.default_rng(seed).permutation(len(vocabulary))
    source = dict(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))
    return [tuple(vocabulary[source[index]]) for index in range(len(vocabulary))]


def evaluate(
    project: Project,
    name: str,
    benchmark: str,
    *,
    seed: int | None,
    condition: str,
    device: str,
) -> None:
    """Evaluate run ``name`` on ``benchmark`` and write ``evaluation.json``.

    Computes the default inference and every variant that a table shows. ``seed``: of the training;
    None: the first of the scale's seeds.

    Raises:
        InputError: a wrong argument, or the data set, a tower or the training is missing.
    """
    kind = check_device(device).split(":")[0]
    set_up_process(project)
    if condition not in CONDITIONS:
        raise InputError(
            f"--condition: unknown {condition!r}; valid choices: {', '.join(CONDITIONS)}"
        )
    test = project.benchmark(benchmark)
    layout, run, scale = Layout(project), project.run(name, seed=seed), project.scale
    variants = project.variants_at(name, benchmark, condition)
    budget = DEFAULT_VARIANT if project.has_budget(name, benchmark, condition) else None
    dataset = ConvertedDataset.open(layout.dataset(test.dataset, test.split))
    training_set = ConvertedDataset.open(layout.dataset(run.train, "train"))
    inputs = {"dataset": dataset.manifest["content"], **frozen_hashes(layout, run.sam)}
    parameters = {
        "run": name,
        "seed": run.seed,
        "benchmark": benchmark,
        "condition": condition,
        "templates": list(scale.templates),
        "inference": {key: value.model_dump(mode="json") for key, value in variants.items()},
        "budget": budget,
        "evaluation": scale.evaluation.model_dump(mode="json"),
    }
    trained: dict[str, Any] = {}
    if condition == "untrained":
        run_identity, segmenter = "untrained", load_segmenter(layout, run.sam, run)
    else:
        weights = layout.run(name, run.seed) / "weights.safetensors"
        trained = finished_run(layout, name, run.seed)
        run_identity = str(trained["identity"])
        segmenter = load_segmenter(layout, run.sam, weights)
        inputs["weights"] = sha256_file(weights)
    names = dataset.vocabulary
    if condition == "shuffled_names":
        names = shuffle_names(names, seed=run.seed)
    record = StageRecord("evaluate", parameters, inputs, seed=run.seed)
    # Only the registry imports the parts that the options name, and it is not counted.
    parts = {*run.model.modules, *(m for own in variants.values() for m in own.modules)}
    identity = {
        **parameters,
        "scale": project.name,
        "synthetic": scale.synthetic,
        "run_identity": run_identity,
        "inputs": inputs,
        "device": kind,
        "code": code_identity((__name__, *parts), device=kind),
    }
    if changes := trained.get("accepted_code"):  # the weights are of more than one version
        identity["accepted_code"] = changes
    identity["identity"] = hash_json(identity)
    out = layout.evaluation(name, run.seed, benchmark, condition)
    segmenter = with_decoders_in(scale.evaluation.precision, segmenter.to(device))
    segmenter = compiled(segmenter, scale.evaluation.compile)
    text = embed_names(layout, segmenter.clip, names, templates=scale.templates)
    shared: dict[str, Any] = {
        "segmenter": segmenter,
        "dataset": dataset,
        "text": text.to(torch.device(device)),
        "seen": seen_classes(dataset.vocabulary, training_set.vocabulary),
        "variants": variants,
        "evaluation": scale.evaluation,
        "identity": identity,
        "out": out,
    }
    if test.images is not None:
        counts = count_parameters(
            sam_architecture=None if run.sam is None else scale.towers.sam[run.sam].architecture,
            clip_config=clip_config(layout),
            model=run.model,
        )
        measure_efficiency(**shared, images=test.images, parameters=counts)
    else:
        evaluate_run(**shared, metrics=test.metrics, device=device, budget=budget)
    record.write(out)
