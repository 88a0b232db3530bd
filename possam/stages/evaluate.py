"""Stage ``evaluate``: one run on one benchmark, trained or as a control that must score low."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.tables import CONDITIONS
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json, sha256_file
from possam.stages.common import (
    StageRecord,
    check_device,
    clip_config,
    code_identity,
    embed_names,
    finished_run,
    frozen_hashes,
    load_towers,
    set_up_process,
    tower_widths,
)

EVALUATION_CODE = (
    "possam.stages.evaluate",
    "possam.evaluation.evaluate",
    "possam.model.segmenter",
    "possam.model.encoders.text",
)
"""Entry points of the code that turns trained weights into figures, for its hash."""


def shuffle_names(vocabulary: Sequence[tuple[str, ...]], *, seed: int) -> list[tuple[str, ...]]:
    """A control: every class gets the names of another class (a seeded derangement).

    Raises:
        InputError: fewer than two classes (nothing to exchange).
    """
    count = len(vocabulary)
    if count < 2:
        raise InputError("shuffled_names: at least two classes are needed")
    generator = np.random.default_rng(seed)
    # A cyclic shift of a random order moves every class.
    order = generator.permutation(count)
    shuffled: list[tuple[str, ...]] = [()] * count
    for position, index in enumerate(order):
        shuffled[index] = tuple(vocabulary[order[(position + 1) % count]])
    return shuffled


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

    All inference variants that tables ask for are computed, and the default.

    Args:
        seed: of the training; default: the first of the scale's seeds.
    """
    import torch

    from possam.datasets.class_names import seen_classes
    from possam.datasets.format import ConvertedDataset
    from possam.evaluation.efficiency import count_parameters
    from possam.evaluation.evaluate import evaluate_run
    from possam.evaluation.speed import measure_efficiency
    from possam.model.ops.compilation import compiled
    from possam.model.possam import build_possam
    from possam.model.segmenter import Segmenter
    from possam.training.checkpoint import load_trained

    check_device(device)
    set_up_process(project)
    if condition not in CONDITIONS:
        raise InputError(
            f"--condition: unknown {condition!r}; valid choices: {', '.join(CONDITIONS)}"
        )
    test = project.benchmark(benchmark)
    layout, run, scale = Layout(project), project.run(name, seed=seed), project.scale
    variants = project.variants_at(name, benchmark, condition)
    dataset = ConvertedDataset.open(layout.dataset(test.dataset, test.split))
    training_set = ConvertedDataset.open(layout.dataset(run.train, "train"))
    frozen = frozen_hashes(layout, run.sam)
    inputs = {"dataset": dataset.manifest["content"], **frozen}
    parameters = {
        "run": name,
        "seed": run.seed,
        "benchmark": benchmark,
        "condition": condition,
        "templates": list(scale.templates),
        "inference": {key: value.model_dump(mode="json") for key, value in variants.items()},
        "evaluation": scale.evaluation.model_dump(mode="json"),
    }
    sam, clip = load_towers(layout, run.sam)
    if condition == "untrained":
        possam = build_possam(run.model, **tower_widths(sam=sam, clip=clip), seed=run.seed)
        run_identity = "untrained"
    else:
        weights = layout.run(name, run.seed) / "weights.safetensors"
        run_identity = str(finished_run(layout, name, run.seed)["identity"])
        possam = load_trained(weights, frozen=frozen)
        inputs["weights"] = sha256_file(weights)
    names = dataset.vocabulary
    if condition == "shuffled_names":
        names = shuffle_names(names, seed=run.seed)
    record = StageRecord("evaluate", parameters, inputs, seed=run.seed)
    segmenter = Segmenter(sam=sam, clip=clip, possam=possam, precision=scale.towers.precision)
    # The parts that the options name are imported through the registry, which is not counted.
    parts = {*run.model.modules, *(m for own in variants.values() for m in own.modules)}
    identity = {
        **parameters,
        "scale": project.name,
        "synthetic": scale.synthetic,
        "run_identity": run_identity,
        "inputs": inputs,
        "code": code_identity((*EVALUATION_CODE, *parts)),
    }
    out = layout.evaluation(name, run.seed, benchmark, condition)
    shared: dict[str, Any] = {
        "segmenter": compiled(segmenter.to(device), scale.evaluation.compile),
        "dataset": dataset,
        "text": embed_names(layout, clip, names, templates=scale.templates).to(
            torch.device(device)
        ),
        "seen": seen_classes(dataset.vocabulary, training_set.vocabulary),
    }
    identity["identity"] = hash_json(identity)
    if test.images is not None:
        counts = count_parameters(
            sam_architecture=None if run.sam is None else scale.towers.sam[run.sam].architecture,
            clip_config=clip_config(layout),
            model=run.model,
        )
        measure_efficiency(
            **shared,
            variants=variants,
            images=test.images,
            parameters=counts,
            evaluation=scale.evaluation,
            identity=identity,
            out=out,
        )
    else:
        evaluate_run(
            **shared,
            variants=variants,
            evaluation=scale.evaluation,
            metrics=test.metrics,
            out=out,
            identity=identity,
            device=device,
        )
    record.write(out)
