import pytest
import torch
import torch.nn.functional as F

from ldm.metrics.fidelity import ssim
from ldm.metrics.stablevsr import figures_of_clips, flow_change, mean_of_clips, visible_pixels, warp_error
from ldm.ops.flow import floored_flow, flow_warp


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


def test_visible_pixels_return_to_where_they_started():
    flow = torch.full((2, 2, 12, 16), 2.0)
    back = torch.stack([torch.full((2, 12, 16), -2.0), torch.full((2, 12, 16), 5.0)])
    visible = visible_pixels(flow, back, grid="aligned")
    assert visible[0, :9, :13].min() == 1 and visible[1].max() == 0


def test_warp_error_counts_each_row_of_a_batch_by_itself():
    current, previous = noise(3, 3, 8, 10), noise(3, 3, 8, 10, seed=1)
    flow, chosen = noise(3, 2, 8, 10, seed=2), (noise(3, 8, 10, seed=3) > 0.4).float()
    whole = warp_error(current, previous, flow), warp_error(current, previous, flow, visible=chosen)
    for k in range(3):
        part = [x[k : k + 1] for x in (current, previous, flow)]
        torch.testing.assert_close(warp_error(*part), whole[0][k : k + 1])
        torch.testing.assert_close(warp_error(*part, visible=chosen[k : k + 1]), whole[1][k : k + 1])
    every = warp_error(current, previous, flow, visible=torch.ones(3, 8, 10))
    torch.testing.assert_close(every, whole[0])


def test_a_floored_flow_loses_parts_of_pixels():
    flow = torch.full((1, 2, 8, 8), 3.9)
    assert floored_flow(flow, factor=2).unique().tolist() == [1.0] and floored_flow(flow, factor=1) is flow
    assert floored_flow(flow, factor=2).shape == (1, 2, 4, 4)
    with pytest.raises(ValueError, match="factor 9"):
        floored_flow(flow, factor=9)


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


def test_figures_are_means_of_means_rounded_as_released():
    clips = [{"psnr": [20.0, 30.0], "tlpips": [0.001, 0.002]}, {"psnr": [40.123], "tlpips": [0.0033333]}]
    assert figures_of_clips(clips) == {"psnr": 32.56, "tlpips": 2.42}
    with pytest.raises(ValueError, match="without psnr"):
        mean_of_clips([[1.0], []], "psnr")


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
