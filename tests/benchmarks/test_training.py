"""The benchmark of training: both sides have the same network, losses and samples."""

import json

import torch

from benchmarks import training
from benchmarks.harness import measure
from possam.model.encoders.text import TextEmbeddings
from possam.model.options import ModelOptions
from possam.model.possam import PosSAM, build_possam
from possam.params.project import Project
from possam.training.options import LossOptions, TrainingOptions
from tests.support.lazy import LazyModule

naive_training = LazyModule("benchmarks.naive_training")

INPUTS = training.Inputs(side=64, sam=(16, 8), clip=(24, 8), embed_dim=12, classes=5)


def _run() -> tuple[ModelOptions, TrainingOptions, LossOptions]:
    run = Project("mini").run("possam_b_coco")
    sizes = {
        "hidden_dim": 32,
        "heads": 2,
        "queries": 9,
        "pixel_encoder_layers": 1,
        "pixel_encoder_ffn": 32,
        "decoder_layers": 2,
        "decoder_ffn": 32,
    }
    model = ModelOptions.model_validate({**run.model.model_dump(), **sizes})
    training_params = run.training.model_copy(
        update={"batch_size": 2, "micro_batch": 2, "precision": "fp32"}
    )
    # As many points as pixels: what is drawn at random then hardly matters.
    return model, training_params, run.loss.model_copy(update={"points": 4096})


def _network(model: ModelOptions) -> PosSAM:
    return build_possam(
        model,
        backbone_channels=(INPUTS.sam[0],),
        clip_channels=INPUTS.clip[0],
        embed_dim=INPUTS.embed_dim,
        seed=0,
    )


def test_a_tiny_run_of_all_steps_finds_about_the_same_losses() -> None:
    torch.manual_seed(0)  # transformers draws its points from the global generator
    model, settings, loss = _run()
    found = [
        measure(case, repeats=1, report=lambda line: None)
        for case in training.step_cases("tiny", INPUTS, model=model, training=settings, loss=loss)
    ]
    names = ["criterion", "step", "step_whole_masks"]
    assert [case["name"] for case in found] == [f"training/{name}_tiny" for name in names]
    assert all(case["error"] < 0.05 for case in found)
    json.dumps(found)


def test_both_sides_predict_the_same() -> None:
    model, settings, loss = _run()
    names = torch.nn.functional.normalize(torch.randn(INPUTS.classes, INPUTS.embed_dim), dim=-1)
    text = TextEmbeddings(names, torch.arange(INPUTS.classes), INPUTS.classes)
    network = _network(model)
    naive = naive_training.NaiveTrainer(
        network, text=text, model=model, training=settings, loss=loss, masks="points", seed=1
    )
    batch = training.draw_batch(INPUTS, images=2)
    masks, scores, quality = naive.predict(batch)
    found = network.train()(batch.backbone, batch.clip_features, all_layers=True)
    assert quality is not None
    assert len(found.layers) == len(masks) == len(scores) == len(quality) == 3
    for layer, own in enumerate(found.layers):
        assert own.iou_logits is not None
        for ours, theirs in (
            (found.mask_logits[layer], masks[layer]),
            (network.class_logits(own.embeddings, text), scores[layer]),
            (own.iou_logits, quality[layer]),
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_loader_draws_what_torchvision_makes_of_images_and_masks() -> None:
    for case in training.loader_case(images=3, size=(48, 64), side=40):
        assert measure(case, repeats=1, report=lambda line: None)["error"] == 0
        assert case.theirs is not None
        for ours, theirs in zip(case.ours(), case.theirs(), strict=True):
            assert ours.index == theirs.index and ours.masks.shape[1:] == theirs.masks.shape[1:]
