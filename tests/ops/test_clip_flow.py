import pytest
import torch

from ldm.ops.clip_flow import enlarged_for_flow, flow_chunks, flows_of_clip, resize_flow_released
from ldm.ops.flow import resize_flow


@pytest.mark.parametrize(("width", "most"), [(64, 12), (640, 12), (641, 8), (720, 8), (1280, 4), (1281, 2)])
@pytest.mark.parametrize("frames", [1, 2, 12, 13, 40])
def test_chunks_hold_every_pair_once(width, most, frames):
    chunks = flow_chunks(frames, width)
    pairs = [pair for chunk in chunks for pair in range(chunk.start, chunk.stop - 1)]
    assert pairs == list(range(frames - 1)) and max(c.stop - c.start for c in chunks) <= most + 1


def test_the_released_scale_is_of_rows():
    flow = torch.ones(1, 2, 8, 16)
    out = resize_flow_released(flow, size=(6, 8))
    assert out[:, :, 0].eq(0.75).all() and out[:, :, 1].eq(0.5).all() and out[:, :, 2:].eq(1).all()
    assert torch.equal(resize_flow_released(flow, size=(8, 16)), flow) and flow.eq(1).all()
    rightly = resize_flow(flow, size=(6, 8))
    assert rightly[:, 0].eq(0.5).all() and rightly[:, 1].eq(0.75).all()


def test_frames_are_enlarged_to_multiples_of_eight():
    assert enlarged_for_flow(torch.zeros(1, 2, 3, 9, 16)).shape == (1, 2, 3, 16, 16)


def brightness(first, second):
    """A network whose flow tells which images it was given, and in which order."""
    change = (second - first).mean((1, 2, 3))
    return change.view(-1, 1, 1, 1).expand(-1, 2, *first.shape[-2:])


def test_flows_lead_to_the_next_and_to_the_previous_frame():
    frames = torch.arange(27.0).square().view(1, 27, 1, 1, 1).expand(2, 27, 3, 8, 8)
    to_next, to_prev = flows_of_clip(brightness, frames)
    change = frames[0, 1:, 0, 0, 0] - frames[0, :-1, 0, 0, 0]
    assert to_next.shape == (2, 26, 2, 8, 8)
    torch.testing.assert_close(to_next[1, :, 0, 0, 0], change)
    torch.testing.assert_close(to_prev, -to_next)


def test_flows_of_odd_sizes_count_pixels_of_the_frames():
    frames = torch.arange(3.0).view(1, 3, 1, 1, 1).expand(1, 3, 3, 6, 12)
    to_next, _ = flows_of_clip(brightness, frames)  # found on 8x16
    torch.testing.assert_close(to_next, torch.full_like(to_next, 0.75))
    released, _ = flows_of_clip(brightness, frames, released_scale=True)
    torch.testing.assert_close(released[..., 2:, :], torch.ones(1, 2, 2, 4, 12))


def test_one_frame_has_no_flow_and_a_broken_flow_is_named():
    to_next, to_prev = flows_of_clip(brightness, torch.zeros(1, 1, 3, 6, 6))
    assert to_next.shape == to_prev.shape == (1, 0, 2, 6, 6)
    with pytest.raises(FloatingPointError, match="frames 0 to 2 is not finite"):
        flows_of_clip(lambda a, b: a[:, :2] / 0, torch.zeros(1, 3, 3, 8, 8))
