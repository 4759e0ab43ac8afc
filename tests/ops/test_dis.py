import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ldm.ops.dis import DISFlow
from ldm.ops.flow import estimate_motion, forward_backward_occlusion

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "flow" / "two_layer_a"


def texture(h, w, seed=0):
    rng = np.random.default_rng(seed)
    planes = np.stack([cv2.GaussianBlur(rng.random((h, w)).astype(np.float32), (0, 0), 2) for _ in range(3)])
    return torch.from_numpy((planes - planes.min()) / (planes.max() - planes.min()))[None]


def pan(h, w, dx, dy, margin=12):
    """Two views of one texture; the second is where the camera has moved so that things shift by (dx, dy)."""
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


def test_it_serves_estimate_motion_on_a_clip():
    a, b = pan(48, 64, 4, 0)
    motion = estimate_motion(DISFlow(), torch.stack((a[0], b[0]))[None], size=(24, 32))
    assert abs(motion.to_next[..., 0, :, :].median() - 2) < 0.1
    assert abs(motion.to_prev[..., 0, :, :].median() + 2) < 0.1


def test_what_it_cannot_search_is_refused():
    with pytest.raises(ValueError, match="preset"):
        DISFlow("best")
    with pytest.raises(ValueError, match="one shape"):
        DISFlow()(torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 41))
    with pytest.raises(ValueError, match="finite"):
        DISFlow()(torch.rand(1, 3, 40, 40), torch.full((1, 3, 40, 40), torch.nan))


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the pair two_layer_a and its flow are not beside this checkout")
def test_a_disc_before_a_rotating_ground():
    frames = [cv2.imread(str(RECORDED / f"frame{k}.png"))[..., ::-1].copy() for k in (0, 1)]
    img1, img2 = (torch.from_numpy(x).movedim(-1, 0)[None] / 255 for x in frames)
    exact = np.load(RECORDED / "flow.npz")
    visible = torch.from_numpy(~exact["occluded"])
    net = DISFlow()
    to_next, to_prev = net(img1, img2), net(img2, img1)
    error = (to_next[0] - torch.from_numpy(exact["flow"]).movedim(-1, 0)).norm(dim=0)
    assert error[visible].mean() < 0.6 and error.mean() < 1.0
    found = forward_backward_occlusion(to_next, to_prev)[0][0, 0] > 0
    assert found[~visible].float().mean() > 0.9
    assert found[visible].float().mean() < 0.1
