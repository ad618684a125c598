"""Augmentations do what their names say, image by image, and again from the same seed."""

from __future__ import annotations

import pytest
import torch

from alignver.experiments.image_sets import AUGMENTATIONS, crop, flip, turn


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def test_crop_shifts_every_image_by_up_to_the_padding():
    x = torch.zeros(400, 1, 7, 7)
    x[:, :, 3, 3] = 1.0
    places = crop(x, 2, source()).nonzero()[:, 2:]
    assert len(places) == 400  # the point never leaves an image of 7 by 2
    assert {tuple(place) for place in places.tolist()} == {(i, j) for i in range(1, 6) for j in range(1, 6)}


def test_crop_fills_with_background_and_keeps_the_channels_together():
    x = torch.arange(1.0, 1 + 3 * 4 * 4).reshape(1, 3, 4, 4).repeat(50, 1, 1, 1)
    out = crop(x, 4, source())
    inside = out[:, 0] > 0
    assert torch.equal(out[:, 1][inside], out[:, 0][inside] + 16)
    assert set(out.unique().tolist()) <= {0.0, *x.unique().tolist()}


def test_flip_mirrors_about_half_of_the_images():
    x = torch.tensor([[1.0, 2.0]]).reshape(1, 1, 1, 2).repeat(1000, 1, 1, 1)
    out = flip(x, source())[:, 0, 0]
    mirrored = (out == torch.tensor([2.0, 1.0])).all(1)
    assert 400 < int(mirrored.sum()) < 600
    assert torch.equal(out[~mirrored], x[~mirrored][:, 0, 0])


def test_turn_by_a_right_angle_is_that_of_rot90(monkeypatch):
    x = torch.rand(2, 3, 6, 6, generator=source())
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.ones(shape))  # the largest angle
    assert torch.equal(turn(x, 90.0, (1.0, 1.0), source()), torch.rot90(x, -1, (2, 3)))


def test_turn_enlarges():
    x = torch.zeros(1, 1, 16, 16)
    x[:, :, 6:10, 6:10] = 1.0
    assert float(turn(x, 0.0, (2.0, 2.0), source()).sum()) == 64.0
    assert float(turn(x, 0.0, (0.5, 0.5), source()).sum()) == 4.0


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_every_augmentation_keeps_shape_and_range_and_can_be_repeated(name):
    x = torch.rand(20, 3, 16, 16, generator=source(1))
    out = AUGMENTATIONS[name](x, source(2))
    assert out.shape == x.shape
    assert float(out.min()) >= 0.0
    assert float(out.max()) <= float(x.max())
    assert torch.equal(out, AUGMENTATIONS[name](x, source(2)))
    assert not torch.equal(out, x)
