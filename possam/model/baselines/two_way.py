"""SAM's two-way decoder with learned queries in place of prompts (paper, Table 6).

The transformer and the position encoding are ``segment_anything``'s modules, trained from scratch.

Shapes: B images, Q queries, N tokens of the image, L layers, C channels, H W (of SAM's map).
"""

from collections.abc import Sequence

import torch
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor, nn

from possam.model.layers import MLP, LayerNorm2d, exchange_layer_norms
from possam.model.options import ModelOptions
from possam.model.region_decoder import RegionDecoder, Regions

UPSCALED_SHARE = 8
"""SAM's output upscaling divides the channels by this."""


class TwoWayDecoder(RegionDecoder):
    """Queries and the image's tokens attend to each other on SAM's one map; no pixel decoder.

    Every layer predicts, as in Mask2Former: its queries pass through SAM's final attention and
    norm, which all layers share, so that layer k gives what a transformer of k layers would. All
    masks are made on one upscaled map, that of the last layer's image tokens. All queries share one
    hypernetwork MLP, where SAM has one for each of its four output tokens.
    """

    def __init__(self, options: ModelOptions, *, backbone_channels: Sequence[int]) -> None:
        super().__init__()
        (in_channels,), channels = backbone_channels, options.hidden_dim
        self.mask_channels = channels // UPSCALED_SHARE
        same = in_channels == channels
        self.projection = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1)
        self.positions = PositionEmbeddingRandom(channels // 2)
        self.queries = nn.Parameter(torch.empty(options.queries, channels))
        self.transformer = TwoWayTransformer(
            depth=options.decoder_layers,
            embedding_dim=channels,
            num_heads=options.heads,
            mlp_dim=options.decoder_ffn,
        )
        exchange_layer_norms(self.transformer)
        self.upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, 2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, self.mask_channels, 2, stride=2),
            nn.GELU(),
        )
        self.mask_head = MLP(channels, channels, self.mask_channels, layers=3)
        nn.init.normal_(self.queries)

    def forward(self, backbone: Sequence[Tensor], *, all_layers: bool) -> Regions:
        """One map (B, C, H, W) -> regions, with mask features (B, C / 8, 4 H, 4 W)."""
        (image,) = backbone
        image = self.projection(image)
        size = (image.shape[-2], image.shape[-1])
        # The angles span many turns: reduced precision would blur them.
        with torch.autocast(image.device.type, enabled=False):
            positions = self.positions(size).flatten(1).T
        queries = self.queries.expand(image.shape[0], -1, -1)
        tokens = image.flatten(2).transpose(1, 2)
        features, tokens = run_two_way(
            self.transformer, queries, tokens, positions, all_layers=all_layers
        )
        mask_features = self.upscaling(tokens.transpose(1, 2).unflatten(2, size))
        return Regions(mask_features, features, self.mask_head(features))


def run_two_way(
    transformer: TwoWayTransformer,
    queries: Tensor,
    tokens: Tensor,
    positions: Tensor,
    *,
    all_layers: bool,
) -> tuple[Tensor, Tensor]:
    """``TwoWayTransformer.forward`` that also keeps what its inner layers find.

    Args:
        queries: (B, Q, C), the initial ones; SAM adds them as positions in every layer.
        tokens: (B, N, C), of the image; positions: (N, C), of these tokens.
        all_layers: return the queries of every layer, the initial ones first; else the last's.

    Returns:
        queries (B, L, Q, C) after the final attention and norm, and the last image tokens.
    """

    def finish(found: Tensor, seen: Tensor) -> Tensor:
        attended = transformer.final_attn_token_to_image(
            q=found + queries, k=seen + positions, v=seen
        )
        return transformer.norm_final_attn(found + attended)

    states = [(queries, tokens)]
    for layer in transformer.layers:
        found, seen = states[-1]
        states.append(layer(queries=found, keys=seen, query_pe=queries, key_pe=positions))
    finished = [finish(*state) for state in states[0 if all_layers else -1 :]]
    return torch.stack(finished, dim=1), states[-1][1]
