import pytest
import torch

from ldm.diffusion.propagation import propagate
from ldm.diffusion.refined import sample_refined
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.diffusion.spacing import spaced
from ldm.ops.crop_tiles import released_tiles
from ldm.ops.tiling import gaussian_window, tiled

SIZE = (20, 40)
STEPS = spaced(Schedule.from_betas(make_betas("linear", 1000, start=1e-4, end=2e-2)), [1, 334, 667])


@pytest.mark.parametrize("size", [(1, 1), (64, 300), (65, 65), (384, 384), (720, 1280), (257, 700)])
@pytest.mark.parametrize("tile", [48, 256])
def test_cores_cover_the_frame_once(size, tile):
    covered = torch.zeros(size, dtype=torch.int64)
    for patch in released_tiles(size, tile):
        patch.place_in(covered, size).add_(1)
        for core, cut, length in zip(*patch, size, strict=True):
            assert cut.start == max(core.start - 64, 0) and cut.stop == min(core.stop + 64, length)
    assert covered.eq(1).all()


def test_tiles_that_make_no_sense_are_refused():
    for size, tile in (((0, 5), 256), ((5, 5), 0)):
        with pytest.raises(ValueError, match="expected at least 1 pixel"):
            released_tiles(size, tile)


def restored(latents, flows):
    """A run whose network sees one pixel: only propagation reaches farther."""
    return sample_refined(
        lambda x, t: torch.sin(x + t), latents, STEPS, refine=lambda x0: propagate(x0, *flows), refine_at=(0, 1)
    )


def test_flows_are_cut_where_the_tile_lies():
    """Tiles with an offset and propagation: in its core each is what the whole frame is."""
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 4, *SIZE)
    # different everywhere, small enough for four frames and two steps to stay within the margin, and consistent
    ramp = torch.linspace(-1.4, 1.4, SIZE[1]).view(1, 1, 1, 1, -1).expand(1, 3, 2, *SIZE).round()
    flows = (ramp.contiguous(), -ramp)
    whole, tiles = restored(latents, flows), released_tiles(SIZE, 12, margin=10)
    assert len(tiles) > 2 and any(cut[1].start > 0 for _, cut in tiles)
    misplaced = 0.0
    for tile in tiles:
        part = restored(tile.of(latents, SIZE), tuple(tile.of(flow, SIZE) for flow in flows))
        torch.testing.assert_close(tile.core_of(part), tile.place_in(whole, SIZE), rtol=1e-4, atol=1e-4)
        rows, columns = (part.stop - part.start for part in tile.cut)
        corner = tuple(flow[..., :rows, :columns] for flow in flows)  # of the right size at the wrong place
        wrong = tile.core_of(restored(tile.of(latents, SIZE), corner)) - tile.place_in(whole, SIZE)
        misplaced = max(misplaced, wrong.abs().max().item())
    assert misplaced > 0.1


def test_tiles_blended_at_every_step_have_less_of_a_seam():
    """A network that sees the mean of what it is given: crops differ from one another, and most where they meet."""
    torch.manual_seed(0)
    ramp = torch.linspace(-1, 1, SIZE[1]).expand(1, 2, 4, *SIZE)

    def network(x, t=0, **_):
        return 0.3 * x + x.mean((-2, -1), keepdim=True)

    crops = torch.zeros(ramp.shape)
    for tile in released_tiles(SIZE, 12, margin=4):
        tile.place_in(crops, SIZE).copy_(tile.core_of(sample_refined(network, tile.of(ramp, SIZE), STEPS)))
    blend = tiled(network, tile=(2, 20, 20), overlap=(0, 8, 8), window=gaussian_window)
    blended = sample_refined(lambda x, t: blend(x, t=t), ramp, STEPS)

    def roughness(x):
        return x.diff(dim=-1).diff(dim=-1).abs().max()

    assert roughness(blended) < 0.7 * roughness(crops)
    whole = tiled(network, tile=(2, 64, 64), overlap=(0, 8, 8))
    assert torch.equal(whole(ramp), network(ramp))
