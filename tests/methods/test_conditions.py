"""The cache of maps that windows share: correct keys, bitwise equal results, bounded size."""

import torch

from ldm.methods.mgld.conditions import Conditions
from ldm.nets.structure import StructureEncoder


class Counted(torch.nn.Module):
    """A small structure encoder that counts its input frames."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = StructureEncoder(
            model_channels=32, out_channels=32, num_res_blocks=1, attention_resolutions=[2], channel_mult=[1, 1]
        )
        self.frames = 0

    def forward(self, z, t):
        self.frames += len(z)
        return self.net(z, t)


T3 = torch.tensor([3])


@torch.no_grad()
def test_shared_frames_are_encoded_once_with_bitwise_equal_results():
    net = Counted()
    kept, fresh = Conditions(net), Conditions(net)
    z = torch.randn(1, 8, 4, 16, 16)
    for start in (0, 3):
        window = z[:, start : start + 5]
        before = net.frames
        maps = kept(window, T3, place=(3, (0, 0)), frames=range(start, start + 5), shared=2)
        assert net.frames - before == (5 if start == 0 else 3)
        expected = fresh(window, T3, place=(3, (0, 0)), frames=range(start, start + 5), shared=0)
        assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    reference = net.net(z[:, 3:].flatten(0, 1), T3)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(maps, reference, strict=True))


@torch.no_grad()
def test_maps_of_another_place_step_or_frame_are_not_used():
    net = Counted()
    conditions, z = Conditions(net), torch.randn(1, 3, 4, 8, 8)
    conditions(z, T3, place=(3, (0, 0)), frames=range(3), shared=2)
    for place, frames in (((3, (0, 8)), range(3)), ((2, (0, 0)), range(3)), ((3, (0, 0)), range(3, 6))):
        before = net.frames
        conditions(z, T3, place=place, frames=frames, shared=2)
        assert net.frames - before == 3, place


@torch.no_grad()
def test_the_cache_is_bounded():
    net = Counted()
    conditions = Conditions(net, limit=40_000)
    for k in range(9):
        conditions(torch.randn(1, 3, 4, 8, 8), T3, place=(3, (0, k)), frames=range(3), shared=2)
    assert 0 < conditions.bytes_kept <= 40_000


@torch.no_grad()
def test_a_call_decides_how_many_frames_are_kept():
    conditions = Conditions(Counted())
    conditions(torch.randn(1, 3, 4, 8, 8), T3, place=(3, (0, 0)), frames=range(3), shared=0)
    assert conditions.bytes_kept == 0
    conditions(torch.randn(1, 3, 4, 8, 8), T3, place=(3, (0, 0)), frames=range(3), shared=2)
    assert conditions.bytes_kept > 0
