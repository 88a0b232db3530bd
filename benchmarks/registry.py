"""The benchmarks by name."""

from collections.abc import Mapping
from types import MappingProxyType

from benchmarks import (
    conversion,
    encoders,
    evaluation,
    inference,
    pictures,
    pipeline,
    scaling,
    training,
)
from benchmarks.harness import Benchmark

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "sam_encoder": Benchmark(
            what="SAM's image encoder, ViT-B, one 1024 x 1024 image",
            cases=encoders.sam_encoder,
            packages=("segment-anything",),
            repeats=3,
        ),
        "deformable": Benchmark(
            what="deformable attention at Mask2Former's sizes",
            cases=encoders.deformable,
            packages=("transformers",),
            repeats=7,
        ),
        "inference": Benchmark(
            what="one 1024 x 1024 image through PosSAM, and its post-processing",
            cases=inference.cases,
            packages=("segment-anything", "open_clip_torch", "transformers"),
            repeats=3,
        ),
        "pictures": Benchmark(
            what="a folder of 640 x 480 pictures with own words, by one call and by many",
            cases=pictures.cases,
            packages=("segment-anything", "open_clip_torch", "transformers"),
            repeats=3,
        ),
        "scaling": Benchmark(
            what="cost against image size, classes, queries and images, with fitted exponents",
            cases=scaling.cases,
            packages=("segment-anything", "open_clip_torch", "transformers"),
            repeats=3,
        ),
        "conversion": Benchmark(
            what="ADE20K and COCO to the one format, on one core",
            cases=conversion.cases,
            packages=("pillow", "pycocotools"),
            repeats=5,
        ),
        "training": Benchmark(
            what="the criterion, the step of PosSAM B's trainable part, and the loader",
            cases=training.cases,
            packages=("transformers", "torchvision"),
            repeats=5,
        ),
        "evaluation": Benchmark(
            what="PQ of 2,000 images, AP of 500, and mIoU of 2,000 with 847 classes, from files",
            cases=evaluation.cases,
            packages=("panopticapi-lite", "pycocotools", "faster-coco-eval", "hotcoco"),
            repeats=3,
        ),
        "pipeline": Benchmark(
            what="help, the paper's plan, and a finished table asked for again",
            cases=pipeline.cases,
            packages=("snakemake",),
            repeats=5,
        ),
    }
)
