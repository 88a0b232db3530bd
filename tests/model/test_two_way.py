"""SAM's two-way decoder: every layer against segment_anything, and what only queries change."""

import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn
from torch.testing import assert_close

from possam.model.baselines.two_way import TwoWayDecoder, run_two_way
from tests.support.model_fakes import TWO_WAY, model_options

CHANNELS, HEADS, FFN = 32, 4, 48


def transformer(depth: int, *, seed: int = 0) -> TwoWayTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = TwoWayTransformer(
            depth=depth, embedding_dim=CHANNELS, num_heads=HEADS, mlp_dim=FFN
        )
        for parameter in module.parameters():  # norms that start as identities would hide mistakes
            nn.init.normal_(parameter, std=0.2)
    return module


def decoder(in_channels: int, *, layers: int = 1) -> TwoWayDecoder:
    options = model_options(
        **TWO_WAY,
        hidden_dim=CHANNELS,
        queries=5,
        heads=HEADS,
        decoder_layers=layers,
        decoder_ffn=FFN,
    )
    return TwoWayDecoder(options, backbone_channels=[in_channels])


def tokens(size: tuple[int, int] = (3, 5)) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (2, 7, C), the image (2, C, h, w) and its positions (C, h, w)."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(2, 7, CHANNELS, generator=generator)
    image = torch.randn(2, CHANNELS, *size, generator=generator)
    return queries, image, torch.randn(CHANNELS, *size, generator=generator)


@pytest.mark.parametrize("depth", [1, 2, 9])
def test_every_layer_is_segment_anything_s_transformer_cut_off_there(depth: int) -> None:
    ours, (queries, image, positions) = transformer(depth), tokens()
    tokens_in = image.flatten(2).transpose(1, 2)
    found, seen = run_two_way(ours, queries, tokens_in, positions.flatten(1).T, all_layers=True)
    assert found.shape == (2, depth + 1, 7, CHANNELS)
    for layers in range(depth + 1):
        theirs = TwoWayTransformer(
            depth=layers, embedding_dim=CHANNELS, num_heads=HEADS, mlp_dim=FFN
        )
        theirs.load_state_dict(
            {name: value for name, value in ours.state_dict().items() if name in keys(theirs)}
        )
        expected, expected_seen = theirs(image, positions.expand_as(image), queries)
        assert_close(found[:, layers], expected)
    assert_close(seen, expected_seen)
    last, seen_last = run_two_way(
        ours, queries, tokens_in, positions.flatten(1).T, all_layers=False
    )
    assert torch.equal(last[:, 0], found[:, -1]) and torch.equal(seen_last, seen)


def keys(module: nn.Module) -> set[str]:
    return set(module.state_dict())


def test_masks_are_those_of_segment_anything_s_decoder() -> None:
    """The same weights, one query in place of SAM's five output tokens and its prompts."""
    torch.manual_seed(2)
    sam = MaskDecoder(
        num_multimask_outputs=3, transformer=transformer(2, seed=3), transformer_dim=CHANNELS
    )
    ours = decoder(CHANNELS, layers=2)
    ours.transformer.load_state_dict(sam.transformer.state_dict())
    ours.upscaling.load_state_dict(sam.output_upscaling.state_dict())
    output = torch.cat((sam.iou_token.weight, sam.mask_tokens.weight))
    ours.queries.data.copy_(output)
    head = sam.output_hypernetworks_mlps[0]
    for mine, theirs in zip(list(ours.mask_head)[::2], head.layers, strict=True):
        mine.load_state_dict(theirs.state_dict())
    image = torch.randn(1, CHANNELS, 4, 6)
    expected, _ = sam.predict_masks(
        image_embeddings=image,
        image_pe=ours.positions((4, 6))[None],
        sparse_prompt_embeddings=torch.empty(1, 0, CHANNELS),
        dense_prompt_embeddings=torch.zeros_like(image),
    )
    mask_features, _, embeddings = ours((image,), all_layers=False)
    masks = torch.einsum("bqc,bchw->bqhw", embeddings[:, 0], mask_features)
    assert masks.shape[-2:] == (16, 24)
    assert_close(masks[:, 1], expected[:, 0])  # query 0 is SAM's IoU token


def test_positions_are_sam_s_and_full_precision_under_autocast() -> None:
    own = decoder(16)
    prompt = PromptEncoder(CHANNELS, (4, 6), (64, 96), 4)
    prompt.pe_layer.load_state_dict(own.positions.state_dict())
    assert_close(own.positions((4, 6))[None], prompt.get_dense_pe())
    seen: list[Tensor] = []
    own.transformer.layers[0].register_forward_pre_hook(
        lambda module, arguments, options: seen.append(options["key_pe"]), with_kwargs=True
    )
    image = torch.randn(1, 16, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        own((image,), all_layers=False)
    assert_close(seen[0], prompt.get_dense_pe()[0].flatten(1).T)


def test_narrower_maps_are_projected() -> None:
    assert isinstance(decoder(CHANNELS).projection, nn.Identity)
    found = decoder(16)((torch.randn(2, 16, 3, 5),), all_layers=True)
    assert found.mask_features.shape == (2, CHANNELS // 8, 12, 20)
    assert found.features.shape == (2, 2, 5, CHANNELS)
    assert found.embeddings.shape == (2, 2, 5, decoder(16).mask_channels)
