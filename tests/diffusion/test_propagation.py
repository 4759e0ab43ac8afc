import pytest
import torch

from ldm.diffusion.propagation import (
    Propagation,
    consistency_masks,
    latent_flow,
    propagate,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def drawn(frames=9, size=(8, 10), noise=0.02):
    """Latents, and flows that lead there and back but for a little."""
    smooth = torch.randn(1, frames - 1, 2, 1, 1).expand(-1, -1, -1, *size)
    back = -smooth + noise * torch.randn(1, frames - 1, 2, *size)
    return torch.randn(1, frames, 4, *size), smooth.contiguous(), back


def still(frames, size=(6, 6)):
    return torch.randn(1, frames, 2, *size), *(torch.zeros(1, frames - 1, 2, *size) for _ in range(2))


def test_two_sweeps_over_still_frames():
    x, *flows = still(3)
    a, b, c = x.unbind(1)
    b, a = 0.5 * c + 0.5 * b, 0.25 * c + 0.25 * b + 0.5 * a  # from the last frame to the first
    b = 0.5 * a + 0.5 * b
    c = 0.5 * b + 0.5 * c
    torch.testing.assert_close(propagate(x, *flows), torch.stack((a, b, c), 1))


def test_copying_brings_the_last_frame_everywhere():
    x, *flows = still(4)
    assert torch.equal(propagate(x, *flows, how=Propagation(fuse=1.0)), x[:, -1:].expand_as(x))


def test_flows_lead_to_the_neighbour_they_are_named_after():
    x, ahead, behind = still(2, size=(6, 8))
    ahead[:, :, 0], behind[:, :, 0] = 2.0, -2.0  # all moves two pixels to the right
    first = propagate(x, ahead, behind)[0, 0]
    torch.testing.assert_close(first[..., :6], 0.5 * (x[0, 0][..., :6] + x[0, 1][..., 2:]))
    assert torch.equal(first[..., 6:], x[0, 0][..., 6:])  # nothing is fetched from outside: 0 is no flow back


def test_masks_compare_squares_and_fetch_bilinearly():
    flow, back = torch.zeros(1, 1, 2, 4, 8), torch.zeros(1, 1, 2, 4, 8)
    flow[:, :, 0], back[:, :, 0] = 1.5, -1.5
    back[:, :, 0, :, 4:] = -1.9
    keep, _ = consistency_masks(flow, back)
    # pixel 3 fetches at 4.5; pixel 2 at 3.5, half of -1.5 and -1.9: |0.2|^2 = 0.04 < 0.001 * 5.14 + 0.05
    assert keep[0, 0, 0, 0].tolist() == [True, True, True, False, False, False, False, False]


def test_inconsistent_pixels_are_left():
    x, ahead, behind = still(2)
    behind += 3.0
    assert torch.equal(propagate(x, ahead, behind), x)


def in_blocks(x, to_next, to_prev, *, block, context):
    """`propagate`, block by block, each with frames of context on either side."""
    frames, done = x.shape[1], []
    for first in range(0, frames, block):
        start, stop = max(first - context, 0), min(first + block + context, frames)
        part = propagate(x[:, start:stop], to_next[:, start : stop - 1], to_prev[:, start : stop - 1])
        done.append(part[:, first - start : first - start + block])
    return torch.cat(done, 1)


@pytest.mark.parametrize(("context", "limit"), [(4, 0.4), (12, 5e-4), (16, 3e-5), (24, 3e-7)])
@pytest.mark.parametrize("block", [5, 30])
def test_blocks_with_context_are_the_whole_clip(context, limit, block):
    x, *flows = drawn(frames=52, size=(4, 5), noise=0.0)
    whole = propagate(x, *flows)
    assert (in_blocks(x, *flows, block=block, context=context) - whole).abs().max() <= limit


def test_little_context_is_not_enough():
    x, *flows = still(40)
    assert (in_blocks(x, *flows, block=5, context=2) - propagate(x, *flows)).abs().max() > 0.01


@pytest.mark.parametrize("cut", [0, 3, 7])
def test_scenes_do_not_mix(cut):
    x, *flows = drawn()
    both = propagate(x, *flows, cuts=[cut])
    parts = (slice(0, cut + 1), slice(cut + 1, 9))
    alone = [propagate(x[:, p], *(flow[:, p.start : p.stop - 1] for flow in flows)) for p in parts]
    torch.testing.assert_close(both, torch.cat(alone, 1))
    assert (both - propagate(x, *flows)).abs().max() > 0.01


def test_one_frame_is_itself():
    x, *flows = still(1)
    assert torch.equal(propagate(x, *flows), x)


def test_what_does_not_fit_is_refused():
    x, *flows = drawn()
    with pytest.raises(ValueError, match="got flow to_next .*resize it to the latents"):
        propagate(x, flows[0][..., 1:], flows[1])
    with pytest.raises(ValueError, match="got cuts \\[8\\], expected pairs from 0 to 7"):
        propagate(x, *flows, cuts=[8])
    with pytest.raises(ValueError, match="got scaling 'x'"):
        latent_flow(flows[0], (4, 4), scaling="x")


def test_flows_of_a_smaller_grid():
    flow = torch.ones(1, 2, 2, 8, 12)
    small = latent_flow(flow, (2, 6))
    assert small.shape == (1, 2, 2, 2, 6)
    assert small[:, :, 0].eq(0.5).all() and small[:, :, 1].eq(0.25).all()
    assert latent_flow(flow, (2, 6), scaling="released")[:, :, 1].eq(0.5).all()
    assert latent_flow(flow[:, :0], (2, 6)).shape == (1, 0, 2, 2, 6)
