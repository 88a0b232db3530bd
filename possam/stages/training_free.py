"""Stage ``evaluate`` for systems of ``params/training_free.yaml``: SAM + CLIP, nothing trained."""

from possam.datasets.class_names import seen_classes
from possam.datasets.format import ConvertedDataset
from possam.evaluation.evaluate import evaluate_run
from possam.evaluation.training_free import TrainingFreeSegmenter
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.tables import DEFAULT_VARIANT, NO_SEED, TRAINING_FREE
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json
from possam.runtime.gpu_driver import check_device
from possam.stages.common import (
    StageRecord,
    code_identity,
    frozen_hashes,
    set_up_process,
)
from possam.stages.models import embed_names, load_clip_tower, load_whole_sam


def evaluate_training_free(project: Project, name: str, benchmark: str, *, device: str) -> None:
    """Evaluate the system ``name`` on ``benchmark`` and write ``evaluation.json``.

    The result has the form of a run's, with one variant and no seed.

    Raises:
        InputError: a wrong argument, or the data set or a tower is missing.
    """
    kind = check_device(device).split(":")[0]
    set_up_process(project)
    layout, scale, entry = Layout(project), project.scale, project.training_free[name]
    test = project.benchmark(benchmark)
    if test.images is not None:
        raise InputError(f"{benchmark}: measures the speed of trained runs; choose another one")
    dataset = ConvertedDataset.open(layout.dataset(test.dataset, test.split))
    seen_set = ConvertedDataset.open(layout.dataset(entry.seen, "train"))
    inputs = {"dataset": dataset.manifest["content"], **frozen_hashes(layout, entry.sam)}
    inference = scale.inference
    parameters = {
        "training_free": name,
        "benchmark": benchmark,
        **entry.model_dump(mode="json"),
        "automatic_masks": scale.automatic_masks.model_dump(mode="json"),
        "templates": list(scale.templates),
        "padding": list(scale.model.padding),
        "inference": {DEFAULT_VARIANT: inference.model_dump(mode="json")},
        "evaluation": scale.evaluation.model_dump(mode="json"),
    }
    record = StageRecord("training_free", parameters, inputs)
    identity = {
        "run": name,
        "seed": NO_SEED,
        "condition": TRAINING_FREE,
        **parameters,
        "scale": project.name,
        "synthetic": scale.synthetic,
        "run_identity": "training_free",
        "inputs": inputs,
        "device": kind,
        "code": code_identity((__name__, *inference.modules), device=kind),
    }
    identity["identity"] = hash_json(identity)
    out = layout.evaluation(name, NO_SEED, benchmark, TRAINING_FREE)
    segmenter = TrainingFreeSegmenter(
        sam=load_whole_sam(layout, entry.sam),
        clip=load_clip_tower(layout),
        options=scale.automatic_masks,
        precision=scale.towers.precision,
        padding=scale.model.padding,
    ).to(device)
    evaluate_run(
        segmenter=segmenter,
        dataset=dataset,
        text=embed_names(layout, segmenter.clip, dataset.vocabulary, templates=scale.templates),
        seen=seen_classes(dataset.vocabulary, seen_set.vocabulary),
        variants={DEFAULT_VARIANT: inference},
        evaluation=scale.evaluation,
        metrics=test.metrics,
        identity=identity,
        out=out,
        device=device,
    )
    record.write(out)
