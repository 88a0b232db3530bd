"""k-means over one image's dense features shows what a frozen tower distinguishes (paper, Fig. 2).

Shapes: C channels, K clusters, h w of the feature map, H W of the image.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from possam.model.inference import Geometry
from possam.model.options import Colour, ResolutionOptions
from possam.model.resolution import pad_image, resize_for_test
from possam.runtime.errors import InputError

_ITERATIONS, _RESTARTS = 50, 5


@dataclass(frozen=True, kw_only=True)
class FeatureClusters:
    """Clusters (K, with k-means' ``seed``) of one frozen tower's features, image by image.

    ``encode``: padded images (B, 3, H', W'), sides multiples of ``stride`` -> (B, C, h, w).
    """

    encode: Callable[[Tensor], Tensor]
    stride: int
    resolution: ResolutionOptions
    padding: Colour
    clusters: int
    seed: int
    device: str

    def labels(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Labels (H, W) int32, 1 to K (1: the largest cluster), of an RGB image (H, W, 3)."""
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        test = resize_for_test(pixels, self.resolution, padding=self.padding)
        height, width = test.pixels.shape[1:]
        padded = (height + -height % self.stride, width + -width % self.stride)
        with torch.inference_mode():
            enlarged = pad_image(test.pixels[None], padded, padding=self.padding)
            features = self.encode(enlarged.to(self.device))[0].cpu()
        return cluster_features(
            features,
            clusters=self.clusters,
            seed=self.seed,
            geometry=Geometry(padded, test.content_size, test.original_size),
        )


def cluster_features(
    features: Tensor, *, clusters: int, seed: int, geometry: Geometry
) -> NDArray[np.int32]:
    """Cluster a feature map's positions and label the image's pixels.

    Features are brought to unit norm. The centres are those of the best of five seeded k-means++
    runs over the map's positions; each pixel takes the centre nearest to its interpolated feature.

    Args:
        features: (C, h, w) floats, covering ``geometry.padded``.
        clusters: K.

    Returns:
        (H, W) int32 labels of ``geometry.output``, 1 to K, 1 the largest cluster.

    Raises:
        InputError: fewer distinct features than clusters.
    """
    unit = F.normalize(features.double(), dim=0)
    centres = torch.from_numpy(_centres(unit.flatten(1).T.numpy(), clusters, seed))
    # |f - c|^2 = |f|^2 - 2 f c + |c|^2, and the f c of an interpolated f is the interpolated f c:
    # so only K maps are enlarged, not C.
    affinity = (
        torch.einsum("kc,chw->khw", centres, unit) - centres.square().sum(1)[:, None, None] / 2
    )
    labels = geometry.restore(affinity).argmax(0).numpy()
    order = np.argsort(-np.bincount(labels.ravel(), minlength=clusters), kind="stable")
    rank = np.empty(clusters, dtype=np.int32)
    rank[order] = np.arange(1, clusters + 1)
    return rank[labels]


def _centres(points: NDArray[np.float64], clusters: int, seed: int) -> NDArray[np.float64]:
    distinct = len(np.unique(points, axis=0))
    if distinct < clusters:
        raise InputError(
            f"clusters: {clusters} were asked for, but the image has {distinct} distinct features; "
            "lower the number"
        )
    options = {"iter": _ITERATIONS, "minit": "++", "rng": np.random.default_rng(seed)}
    with warnings.catch_warnings():
        # A centre that loses all its points stays where it is and can win points again.
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        runs = [kmeans2(points, clusters, missing="warn", **options) for _ in range(_RESTARTS)]
    errors = [np.square(points - centres[labels]).sum() for centres, labels in runs]
    return runs[int(np.argmin(errors))][0]


def matched_labels(
    labels: NDArray[np.int32], reference: NDArray[np.int32], *, clusters: int
) -> NDArray[np.int32]:
    """``labels`` renumbered to share as many pixels as possible with ``reference`` (both 1 to K).

    Only the numbers change: equal numbers (colours) make two maps easier to compare.
    """
    pairs = (labels.astype(np.int64) - 1) * clusters + reference - 1
    shared = np.bincount(pairs.ravel(), minlength=clusters**2).reshape(clusters, clusters)
    rows, columns = linear_sum_assignment(-shared)
    renamed = np.zeros(clusters + 1, dtype=np.int32)
    renamed[rows + 1] = columns + 1
    return renamed[labels]
