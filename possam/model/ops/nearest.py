"""Which predicted regions are most like masks that come from elsewhere.

Shapes: B images, M given masks, Q queries, C channels, H W of the given masks, h w of mask maps.
"""

from torch import Tensor

from possam.model.ops.resampling import resample_area


def nearest_regions(regions: Tensor, mask_logits: Tensor, masks: Tensor) -> Tensor:
    """The features of the query whose own mask has the highest IoU with each given mask.

    Args:
        regions: (B, 1, Q, C), one decoder layer's features.
        mask_logits: (B, Q, h, w) of the queries; ``masks``: (B, M, H, W) logits, over the same
            extent, which are averaged down or repeated to the maps' size.

    Returns:
        (B, 1, M, C). A mask that overlaps with no query's gets the first query.
    """
    given = resample_area((masks > 0).float(), (mask_logits.shape[-2], mask_logits.shape[-1]))
    given, own = given.flatten(2), (mask_logits > 0).float().flatten(2)
    shared = given @ own.transpose(1, 2)  # (B, M, Q)
    union = given.sum(-1, keepdim=True) + own.sum(-1).unsqueeze(1) - shared
    best = (shared / union.clamp(min=1e-6)).argmax(-1)
    index = best[:, None, :, None].expand(-1, 1, -1, regions.shape[-1])
    return regions.gather(2, index)
