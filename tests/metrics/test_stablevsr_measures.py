import pytest
import torch
import torch.nn.functional as F

from ldm.metrics.fidelity import ssim
from ldm.metrics.temporal import flow_change
from ldm.ops.flow import flow_warp


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_released_warp_of_no_flow_moves_half_a_pixel_outwards_from_the_middle():
    ramp = torch.arange(9.0).view(1, 1, 1, 9).expand(1, 1, 9, 9)
    still = torch.zeros(1, 2, 9, 9)
    assert torch.equal(flow_warp(ramp, still), ramp)
    moved = flow_warp(ramp, still, grid="released", padding="border")[0, 0, 4]
    expected = (torch.arange(9.0) * 9 / 8 - 0.5).clamp(0, 8)
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)
    dark = flow_warp(torch.ones(1, 1, 9, 9), still, grid="released")[0, 0]
    torch.testing.assert_close(dark[[0, 0, 4], [0, 4, 4]], torch.tensor([0.25, 0.5, 1.0]))
    with pytest.raises(ValueError, match="'corners'"):
        flow_warp(ramp, still, grid="corners")


def test_tof_is_the_mean_difference_of_flows_from_a_frame_to_the_one_before():
    asked = []

    def flow(target, source):
        asked.append((target.mean().item(), source.mean().item()))
        return (target - source)[:, :2]

    pictures = [torch.full((3, 4, 4), k / 255) for k in (10, 30, 50, 110)]
    assert flow_change((pictures[0], pictures[1]), (pictures[2], pictures[3]), flow) == pytest.approx(40 / 255)
    assert asked == [pytest.approx((30 / 255, 10 / 255)), pytest.approx((110 / 255, 50 / 255))]
    with pytest.raises(ValueError, match="one size"):
        flow_change((pictures[0], pictures[1]), (pictures[2][:, 1:], pictures[3][:, 1:]), flow)


@pytest.mark.parametrize("size", [(40, 48), (13, 90)])
def test_ssim_of_torchmetrics_has_windows_around_every_pixel(size):
    truth = (noise(3, *size) * 255).round() / 255
    frame = ((truth + 0.1 * noise(3, *size, seed=1)).clamp(0, 1) * 255).round() / 255
    reflected = [F.pad(picture[None], (5, 5, 5, 5), mode="reflect")[0] for picture in (frame, truth)]
    found = ssim(frame, truth, windows="torchmetrics")
    assert found == pytest.approx(ssim(*reflected), abs=1e-12)
    assert abs(found - ssim(frame, truth)) > 1e-5
    with pytest.raises(ValueError, match="'all'"):
        ssim(frame, truth, windows="all")
