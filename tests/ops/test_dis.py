import copy

import cv2
import numpy as np
import pytest
import torch

from ldm.ops.dis import DISFlow
from ldm.ops.flow import estimate_motion, forward_backward_occlusion


def texture(h, w, seed=0):
    rng = np.random.default_rng(seed)
    planes = np.stack([cv2.GaussianBlur(rng.random((h, w)).astype(np.float32), (0, 0), 2) for _ in range(3)])
    return torch.from_numpy((planes - planes.min()) / (planes.max() - planes.min()))[None]


def pan(h, w, dx, dy, margin=12):
    """Two views of a texture; the second is shifted by (dx, dy)."""
    world = texture(h + 2 * margin, w + 2 * margin)
    view = world[..., margin : margin + h, margin : margin + w]
    return view, world[..., margin - dy : margin - dy + h, margin - dx : margin - dx + w]


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
@pytest.mark.parametrize(("dx", "dy"), [(5, -2), (-3, 4)])
def test_a_pan_is_found(preset, dx, dy):
    flow = DISFlow(preset)(*pan(96, 128, dx, dy))
    error = (flow - torch.tensor([dx, dy]).view(1, 2, 1, 1)).norm(dim=1)
    assert flow.shape == (1, 2, 96, 128) and flow.dtype == torch.float32
    assert error.mean() < 0.3


def test_a_small_picture_is_enlarged_for_the_search_and_its_flow_scaled_back():
    flow = DISFlow()(*pan(16, 24, 2, -1))
    assert (flow - torch.tensor([2, -1]).view(1, 2, 1, 1)).norm(dim=1).median() < 0.3


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (8, 200), (12, 12), (12, 400), (400, 15), (31, 200), (33, 65)])
@pytest.mark.parametrize("preset", ["fast", "medium"])
def test_no_size_crashes(preset, size):
    picture = texture(*size)
    flow = DISFlow(preset)(picture, picture)
    assert flow.shape == (1, 2, *size)
    assert torch.isfinite(flow).all() and flow.abs().max() < 1


def test_pairs_of_a_batch_do_not_influence_each_other():
    (a, b), (c, d) = pan(48, 64, 3, 0), pan(48, 64, 0, -4)
    net = DISFlow()
    together = net(torch.cat((a, c)), torch.cat((b, d)))
    assert together[:1].equal(net(a, b)) and together[1:].equal(net(c, d))
    assert together.equal(copy.deepcopy(net)(torch.cat((a, c)), torch.cat((b, d))))


def test_dis_works_with_estimate_motion():
    a, b = pan(48, 64, 4, 0)
    motion = estimate_motion(DISFlow(), torch.stack((a[0], b[0]))[None], size=(24, 32))
    assert abs(motion.to_next[..., 0, :, :].median() - 2) < 0.1
    assert abs(motion.to_prev[..., 0, :, :].median() + 2) < 0.1


def test_invalid_images_are_refused():
    with pytest.raises(ValueError, match="preset"):
        DISFlow("best")
    with pytest.raises(ValueError, match="one shape"):
        DISFlow()(torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 41))
    with pytest.raises(ValueError, match="finite"):
        DISFlow()(torch.rand(1, 3, 40, 40), torch.full((1, 3, 40, 40), torch.nan))


def rotating_ground(h, w, degrees):
    """Two views of a rotating texture and the exact flow from the first to the second."""
    ground = texture(h, w)[0].permute(1, 2, 0).numpy()
    turn = cv2.getRotationMatrix2D((w / 2, h / 2), degrees, 1)
    second = cv2.warpAffine(ground, turn, (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    moved = np.einsum("ij,jhw->ihw", turn, np.stack([x, y, np.ones_like(x)]))
    return ground, second, (moved - np.stack([x, y])).astype(np.float32)


def test_flow_of_a_disc_on_a_rotating_background():
    h, w, (dx, dy) = 160, 200, (9, 4)
    first, second, exact = rotating_ground(h, w, 3)
    y, x = np.mgrid[:h, :w]
    here, there = ((x - 90 - dx * k) ** 2 + (y - 75 - dy * k) ** 2 < 30**2 for k in (0, 1))
    disc = texture(h, w, seed=1)[0].permute(1, 2, 0).numpy()
    first[here] = disc[here]
    second[there] = np.roll(disc, (dy, dx), axis=(0, 1))[there]
    exact[:, here] = np.array([[dx], [dy]])
    # hidden: ground that the disc comes to cover
    ends = np.rint(np.stack([x, y]) + exact).astype(int).clip(0, [[[w - 1]], [[h - 1]]])
    occluded = torch.from_numpy(~here & there[ends[1], ends[0]])
    img1, img2 = (torch.from_numpy(frame).movedim(-1, 0)[None].clamp(0, 1) for frame in (first, second))
    inside = torch.zeros(h, w, dtype=torch.bool)
    inside[12:-12, 12:-12] = True  # what turns out of the picture is no occlusion
    visible = inside & ~occluded
    to_next, to_prev = DISFlow()(img1, img2), DISFlow()(img2, img1)
    error = (to_next[0] - torch.from_numpy(exact)).norm(dim=0)
    assert error[visible].mean() < 0.6 and error[inside].mean() < 1.0
    found = forward_backward_occlusion(to_next, to_prev)[0][0, 0] > 0
    assert found[occluded].float().mean() > 0.9
    assert found[visible].float().mean() < 0.1
