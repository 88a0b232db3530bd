"""SAM's image encoder and deformable attention, against the libraries that people use."""

from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Case, relative_error

if TYPE_CHECKING:
    import torch

SIDE = 1024
LEVELS = ((32, 32), (64, 64), (128, 128))
"""Maps of a 1024 x 1024 image that Mask2Former's pixel decoder works on (strides 32, 16, 8)."""


def sam_encoder() -> Iterator[Case]:
    """ViT-B, random weights of the official layout, one 1024 x 1024 image: fp32, then bf16."""
    import torch

    from possam.model.encoders.sam import build_sam, find_architecture
    from possam.model.ops.sam_encoder import run_encoder

    torch.manual_seed(0)
    encoder = build_sam(find_architecture("vit_b")).image_encoder.requires_grad_(False)
    # The official layout initialises position tables with zeros; trained ones are not zero.
    with torch.no_grad():
        for block in encoder.blocks:
            for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
                torch.nn.init.normal_(table, std=0.02)
    image = torch.randn(1, 3, SIDE, SIDE)
    reference = f"segment-anything {metadata.version('segment-anything')}: ImageEncoderViT"
    with torch.inference_mode():
        yield Case(
            name="sam_encoder/vit_b_fp32",
            reference=reference,
            ours=lambda: run_encoder(encoder, image),
            theirs=lambda: encoder(image),
            error=(relative_error, "relative to the largest value"),
            unit="image",
            target=2.0,
        )
        half = build_sam(find_architecture("vit_b")).image_encoder
        half.load_state_dict(encoder.state_dict())
        half = half.to(torch.bfloat16).requires_grad_(False)
        yield Case(
            name="sam_encoder/vit_b_bf16",
            reference=f"{reference}, fp32",
            ours=lambda: run_encoder(half, image.bfloat16()).float(),
            theirs=lambda: encoder(image),
            error=(relative_error, "relative to the largest value, bf16 against fp32"),
            unit="image",
            target=3.0,
            note="ours in bfloat16, the reference in fp32, as people use it",
        )


def deformable() -> Iterator[Case]:
    """One layer of deformable attention at Mask2Former's sizes: 3 levels, 8 heads, 4 points; on the
    CPU, and also on a GPU if there is one.
    """
    import torch

    yield from _deformable_on(torch.device("cpu"))
    if torch.cuda.is_available():
        yield from _deformable_on(torch.device("cuda"))


def _deformable_on(device: "torch.device") -> Iterator[Case]:
    import torch
    from transformers.models.mask2former.modeling_mask2former import (
        Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention as Reference,
    )

    from possam.model.pixel_decoder import DeformableAttention, reference_points

    torch.manual_seed(0)
    channels, heads, points = 256, 8, 4
    own = DeformableAttention(channels=channels, heads=heads, levels=len(LEVELS), points=points)
    torch.nn.init.normal_(own.sampling_offsets.weight, std=0.01)
    torch.nn.init.normal_(own.attention_weights.weight, std=0.02)
    other = Reference(embed_dim=channels, num_heads=heads, n_levels=len(LEVELS), n_points=points)
    other.load_state_dict(own.state_dict())
    own, other = own.to(device), other.to(device)
    tokens = sum(height * width for height, width in LEVELS)
    value = torch.randn(1, tokens, channels).to(device)
    centres = reference_points(LEVELS, device=device)
    references = centres[None, :, None].expand(1, -1, len(LEVELS), -1).contiguous()

    def run_ours(x: Any) -> Any:
        return own(x, x, references=centres, shapes=LEVELS)

    def run_theirs(x: Any) -> Any:
        return other(
            hidden_states=x,
            encoder_hidden_states=x,
            reference_points=references,
            spatial_shapes_list=list(LEVELS),
        )[0]

    def used(run: Any) -> Any:
        with torch.no_grad():
            return run(value)

    def trained(module: Any, run: Any) -> Any:
        module.zero_grad(set_to_none=True)
        x = value.clone().requires_grad_()
        run(x).square().sum().backward()
        return x.grad

    name = "transformers"
    reference = f"{name} {metadata.version(name)}: Mask2Former's deformable attention"
    on_cuda = device.type == "cuda"
    kind = "_cuda" if on_cuda else ""
    shared: dict[str, Any] = {
        "device": device.type,
        "note": "Triton's kernels" if on_cuda else "",
    }
    yield Case(
        name=f"deformable/forward{kind}",
        reference=reference,
        ours=lambda: used(run_ours),
        theirs=lambda: used(run_theirs),
        error=(relative_error, "relative to the largest value"),
        target=3.0 if on_cuda else 1.5,
        **shared,
    )
    yield Case(
        name=f"deformable/forward_backward{kind}",
        reference=reference,
        ours=lambda: trained(own, run_ours),
        theirs=lambda: trained(other, run_theirs),
        error=(relative_error, "gradient of the input, relative to the largest value"),
        target=3.0 if on_cuda else 1.3,
        **shared,
    )
