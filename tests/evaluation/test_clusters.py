"""Clusters of features: what was planted is found, and pixels go to the nearest centre."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from possam.evaluation.clusters import (
    FeatureClusters,
    _centres,
    cluster_features,
    matched_labels,
)
from possam.model.inference import Geometry
from possam.model.options import ResolutionOptions
from possam.runtime.errors import InputError

SAME = Geometry(padded=(6, 8), content=(6, 8), output=(6, 8))


def planted(seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """A (5, 6, 8) map of four kinds of features with a little noise, and the kinds 0..3."""
    generator = np.random.default_rng(seed)
    kinds = generator.permutation(np.repeat(np.arange(4), (24, 12, 8, 4))).reshape(6, 8)
    means = np.eye(5)[:4] * np.array([1.0, 5.0, 0.2, 30.0])[:, None]
    noise = 0.01 * generator.standard_normal((6, 8, 5))
    features = means[kinds] * (1 + 0.1 * generator.random((6, 8, 1))) + noise * means.sum(1).min()
    return torch.from_numpy(features).permute(2, 0, 1), kinds


@given(st.integers(0, 1000))
def test_planted_clusters_are_found_the_largest_first(seed: int) -> None:
    features, kinds = planted(seed)
    labels = cluster_features(features, clusters=4, seed=seed, geometry=SAME)
    np.testing.assert_array_equal(labels, kinds + 1)


@pytest.mark.parametrize("clusters", [2, 3, 6])
def test_every_cluster_is_there_and_seeds_repeat(clusters: int) -> None:
    features = torch.from_numpy(np.random.default_rng(1).standard_normal((5, 6, 8)))
    geometry = Geometry(padded=(12, 16), content=(10, 15), output=(20, 30))
    first, second = (
        cluster_features(features, clusters=clusters, seed=3, geometry=geometry) for _ in range(2)
    )
    assert first.shape == (20, 30) and first.dtype == np.int32
    sizes = np.bincount(first.ravel())[1:]
    assert len(sizes) == clusters and (np.diff(sizes) <= 0).all() and sizes.min() > 0
    np.testing.assert_array_equal(first, second)


def test_the_length_of_a_feature_does_not_count() -> None:
    features, _ = planted(0)
    scale = torch.from_numpy(np.random.default_rng(0).uniform(0.1, 10, (1, 6, 8)))
    labels = [
        cluster_features(f, clusters=4, seed=0, geometry=SAME) for f in (features, features * scale)
    ]
    np.testing.assert_array_equal(*labels)


def test_pixels_take_the_centre_nearest_to_their_interpolated_feature() -> None:
    features = torch.from_numpy(np.random.default_rng(2).standard_normal((5, 6, 8)))
    geometry = Geometry(padded=(48, 64), content=(48, 64), output=(48, 64))
    labels = cluster_features(features, clusters=5, seed=0, geometry=geometry)
    unit = F.normalize(features, dim=0)
    centres = _centres(unit.flatten(1).T.numpy(), 5, 0)
    pixels = F.interpolate(unit[None], (48, 64), mode="bilinear", align_corners=False)[0]
    distance = np.linalg.norm(
        pixels.flatten(1).T.numpy()[:, None] - centres[None], axis=-1
    ).reshape(48, 64, 5)
    nearest = distance.argmin(-1)
    # The same partition, whatever its numbers.
    pairs = {(int(a), int(b)) for a, b in zip(labels.ravel(), nearest.ravel(), strict=True)}
    assert len(pairs) == 5


def test_fewer_features_than_clusters() -> None:
    features = torch.ones(5, 6, 8)
    features[0, :, 4:] = 3.0
    with pytest.raises(InputError, match="3 were asked for, but the image has 2"):
        cluster_features(features, clusters=3, seed=0, geometry=SAME)


@given(st.permutations(range(1, 6)), st.integers(0, 1000))
def test_matching_undoes_a_renumbering(order: list[int], seed: int) -> None:
    reference = np.random.default_rng(seed).integers(1, 6, (9, 9)).astype(np.int32)
    reference[0, :5] = range(1, 6)
    renamed = np.array([0, *order], dtype=np.int32)[reference]
    np.testing.assert_array_equal(matched_labels(renamed, reference, clusters=5), reference)


@given(st.integers(0, 1000))
def test_matching_keeps_the_clusters(seed: int) -> None:
    first, second = np.random.default_rng(seed).integers(1, 5, (2, 7, 7)).astype(np.int32)
    matched = matched_labels(first, second, clusters=4)
    pairs = {(int(a), int(b)) for a, b in zip(first.ravel(), matched.ravel(), strict=True)}
    assert len(pairs) == len(np.unique(first)) == len(np.unique(matched))
    assert (matched == second).sum() >= (first == second).sum()


def test_an_image_is_labelled_at_its_own_size() -> None:
    image = np.zeros((10, 14, 3), np.uint8)
    image[:, 7:] = (200, 100, 50)
    seen = []

    def encode(padded: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(padded.shape))
        return F.avg_pool2d(padded, 2) + 1.0

    clusters = FeatureClusters(
        encode=encode,
        stride=8,
        resolution=ResolutionOptions(policy="native", size=16, max_size=16),
        padding=(124, 116, 104),
        clusters=3,
        seed=0,
        device="cpu",
    )
    labels = clusters.labels(image)
    assert seen == [(1, 3, 16, 16)] and labels.shape == (10, 14)
    left, right = labels[:, 0], labels[:, 10]
    assert len({*left.tolist()}) == len({*right.tolist()}) == 1 and left[0] != right[0]
