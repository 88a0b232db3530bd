"""Scenes: exact repeats, and labels that agree with themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from possam.synthetic.fitting import pack_scenes, segment_masks
from possam.synthetic.scenes import (
    SIZE,
    STYLES,
    render_scene,
    render_scenes,
    scene_rng,
    shape_mask,
)
from possam.synthetic.vocabulary import CLASSES, SHAPES, domain_classes

DOMAINS = ("a", "b", "web", "held")
BARE = replace(STYLES["b"], cast=0, mix=0, shade=1, radius=(16, 24), log_radius=False)
"""B's layout and noise in white light, with large things, pure paint and no parts."""


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), domain=st.sampled_from(DOMAINS))
def test_segments_partition_the_scene(seed: int, domain: str) -> None:
    scene = render_scene(np.random.default_rng(seed), domain)  # type: ignore[arg-type]
    assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
    assert scene.ids.shape == (SIZE, SIZE) and scene.ids.dtype == np.uint8
    allowed = {c.index: c.is_thing for c in domain_classes(domain)}  # type: ignore[arg-type]
    assert [s.id for s in scene.segments] == list(range(1, len(scene.segments) + 1))
    for segment in scene.segments:
        assert segment.area == (scene.ids == segment.id).sum() >= 40
        assert allowed[segment.class_index] == segment.is_thing
    assert sum(s.area for s in scene.segments) == (scene.ids > 0).sum()
    # What is left unlabelled are slivers only.
    assert (scene.ids == 0).mean() < 0.02
    stuff = [s.class_index for s in scene.segments if not s.is_thing]
    assert 1 <= len(stuff) <= 3 and len(set(stuff)) == len(stuff)


def test_a_scene_depends_on_seed_domain_split_and_index_only() -> None:
    first = render_scenes(5, domain="b", split="val", seed=3)
    again = render_scenes(2, domain="b", split="val", seed=3, start=3)
    for one, two in zip(first[3:], again, strict=True):
        assert np.array_equal(one.image, two.image) and np.array_equal(one.ids, two.ids)
        assert one.segments == two.segments
    others = (
        scene_rng(seed=4, domain="b", split="val", index=3),
        scene_rng(seed=3, domain="a", split="val", index=3),
        scene_rng(seed=3, domain="b", split="train", index=3),
        scene_rng(seed=3, domain="b", split="val", index=4),
    )
    for rng in others:
        assert not np.array_equal(render_scene(rng, "b").image, first[3].image)


def test_every_class_of_a_domain_occurs() -> None:
    found = {s.class_index for x in render_scenes(150, domain="b", seed=0) for s in x.segments}
    assert found == {c.index for c in domain_classes("b")}


def test_a_thing_has_its_colour() -> None:
    """The mean colour of a red thing is red, of a blue one blue, with any pattern and light."""
    for scene in render_scenes(40, domain="b", seed=1, styles={"b": BARE}):
        for segment in scene.segments:
            colour = CLASSES[segment.class_index].colour
            mean = scene.image[scene.ids == segment.id].mean(0)
            if colour == "red":
                assert mean[0] > 2 * max(mean[1], mean[2])
            elif colour == "blue":
                assert mean[2] > 1.5 * max(mean[0], mean[1])
            elif colour == "black":
                assert mean.max() < 90


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_part_of_the_unit_frame(shape: str) -> None:
    v, u = np.mgrid[-2:2:201j, -2:2:201j].astype(np.float32)  # type: ignore[misc]
    inside = shape_mask(shape, u, v)
    assert not (inside & (np.hypot(u, v) > 1.3)).any()
    assert 0.5 < inside.sum() * 0.02**2 < 3.0


def test_hand_computed_shape_points() -> None:
    u, v = np.array([0.0, 0.0, 0.7, -0.9]), np.array([0.0, 0.7, 0.7, 0.0])
    assert shape_mask("disc", u, v).tolist() == [True, True, False, False]
    assert shape_mask("square", u, v).tolist() == [True, True, True, False]
    assert shape_mask("ring", u, v).tolist() == [False, True, False, True]
    assert shape_mask("cross", u, v).tolist() == [True, True, False, True]
    with pytest.raises(ValueError, match="heptagon"):
        shape_mask("heptagon", u, v)


def test_packed_scenes_keep_images_ids_and_classes() -> None:
    scenes = render_scenes(4, domain="a", seed=5)
    packed = pack_scenes(scenes)
    assert len(packed) == 4
    for k, scene in enumerate(scenes):
        assert np.array_equal(packed.images[k].numpy().transpose(1, 2, 0), scene.image)
        present = packed.classes[k][packed.classes[k] >= 0].tolist()
        assert present == [s.class_index for s in scene.segments]
    masks = segment_masks(packed.ids, packed.classes.shape[1])
    areas = torch.tensor([[s.area for s in scenes[2].segments]])
    assert torch.equal(masks[2].sum((1, 2))[: areas.shape[1]].long(), areas[0])


PARTS = {"b": replace(BARE, shade=0.5, noise=0)}


def test_a_style_with_parts_shades_one_part_of_every_segment() -> None:
    plain = render_scenes(8, domain="b", seed=2, styles={"b": BARE})
    assert not any(scene.shaded.any() for scene in plain)
    shares = []
    for scene in render_scenes(8, domain="b", seed=2, styles=PARTS):
        for segment in scene.segments:
            inside = scene.ids == segment.id
            shares.append(scene.shaded[inside].mean())
            if 0.2 < shares[-1] < 0.8:
                lit, dark = inside & ~scene.shaded, inside & scene.shaded
                assert scene.image[dark].mean() < scene.image[lit].mean()
    assert np.mean([0.05 < share < 0.95 for share in shares]) > 0.9
    assert not np.array_equal(plain[0].image, scene.image)


def test_a_cast_scales_channels_and_moves_nothing() -> None:
    """One channel keeps its strength, another loses the most, as the style says."""
    bare = {"b": replace(BARE, noise=0)}
    cast = {"b": replace(BARE, noise=0, cast=0.5)}
    for k in range(6):
        before, after = (
            render_scenes(1, domain="b", seed=6, start=k, styles=styles)[0]
            for styles in (bare, cast)
        )
        assert np.array_equal(before.ids, after.ids)
        gains = sorted(after.image.mean((0, 1)) / before.image.mean((0, 1)))
        assert gains[0] == pytest.approx(0.5, abs=0.02) and gains[2] == pytest.approx(1, abs=0.02)


def test_log_uniform_radii_give_as_many_small_things_as_large_ones() -> None:
    styles = {"b": replace(BARE, radius=(6, 24), log_radius=True, max_things=2)}
    areas = [
        s.area / shape_area(CLASSES[s.class_index].form)
        for scene in render_scenes(80, domain="b", seed=8, styles=styles)
        for s in scene.segments
        if s.is_thing
    ]
    assert np.median(np.sqrt(areas)) == pytest.approx(np.sqrt(6 * 24), rel=0.15)


def test_mixed_paint_stays_between_two_colours() -> None:
    """Half of another colour: things keep the larger share of their own."""
    styles = {"b": replace(BARE, mix=0.5, noise=0, haze=0)}
    plain = {"b": replace(BARE, noise=0, haze=0)}
    means = [
        scene.image[scene.ids == s.id].mean(0)
        for style in (plain, styles)
        for scene in render_scenes(60, domain="b", seed=4, styles=style)
        for s in scene.segments
        if CLASSES[s.class_index].colour == "white"
    ]
    spread = [float(np.ptp(mean)) for mean in means]
    assert max(spread) > 30 and all(mean.max() > 110 for mean in means)


def shape_area(shape: str) -> float:
    """Area of a shape of radius one."""
    v, u = np.mgrid[-1.2:1.2:241j, -1.2:1.2:241j].astype(np.float32)  # type: ignore[misc]
    return float(shape_mask(shape, u, v).sum()) * 0.01**2
