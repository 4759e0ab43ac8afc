import logging

import pytest
import torch

from ldm.ops.tiling import (
    Tile,
    flat_window,
    gaussian_window,
    pasted,
    patches,
    released_gaussian_window,
    splitter_starts,
    starts,
    tiled,
)

WINDOWS = [flat_window, gaussian_window, released_gaussian_window]


def clip(t: int, h: int, w: int, *, b: int = 2, c: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(b, t, c, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(1, 64, 64), (5, 20, 37), (8, 33, 16), (12, 7, 50)])
@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_pixel_wise_function_is_not_changed(size, scale, window):
    def enlarge(x, *, tiles):
        return 2 * x.repeat_interleave(scale, -1).repeat_interleave(scale, -2)

    x = clip(*size)
    out = tiled(enlarge, tile=(5, 16, 16), overlap=(2, 8, 5), window=window, batch=3)(x)
    torch.testing.assert_close(out, enlarge(x, tiles=[]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tile", [(4, 9, 10), (100, 100, 100)])
def test_one_tile_is_the_function_itself(tile):
    x = clip(4, 9, 10)
    out = tiled(lambda x, *, tiles: x.cumsum(-1).cumsum(1), tile=tile, overlap=(3, 8, 8))(x)
    assert torch.equal(out, x.cumsum(-1).cumsum(1))


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_tiles_are_stacked_clip_by_clip_and_named(batch):
    x, seen = clip(6, 20, 24), []

    def check(x_tile, *, tiles):
        assert len(tiles) <= batch and len(x_tile) == 2 * len(tiles)
        for tile, rows in zip(tiles, x_tile.split(2), strict=True):
            assert torch.equal(rows, x[:, tile.t, :, tile.y, tile.x])
        seen.extend(tiles)
        return x_tile

    torch.testing.assert_close(tiled(check, tile=(4, 12, 12), overlap=(2, 4, 6), batch=batch)(x), x)
    assert len(seen) == len({str(tile) for tile in seen}) == 2 * 2 * 3
    # frames are the outer loop, then columns, rows inside, as the released splitter and canvas go
    assert seen == sorted(seen, key=lambda tile: (tile.t.start, tile.x.start, tile.y.start))


def test_tensors_of_other_sizes_are_cut_in_proportion_and_other_arguments_are_passed_on():
    latent, image = clip(3, 20, 24), clip(3, 80, 96, c=1, seed=1)
    factor = torch.tensor(3.0)

    def decode(z, picture, *, tiles, factor):
        return factor * z[:, :, :1].repeat_interleave(4, -1).repeat_interleave(4, -2) + picture

    run = tiled(decode, tile=(3, 8, 8), overlap=(0, 3, 4))
    torch.testing.assert_close(run(latent, image, factor=factor), decode(latent, image, tiles=[], factor=factor))
    shrunk = tiled(lambda picture, z, *, tiles: z, tile=(3, 32, 32), overlap=(0, 16, 16))
    torch.testing.assert_close(shrunk(image, latent), latent)
    with pytest.raises(ValueError, match="align"):
        tiled(lambda picture, z, *, tiles: z, tile=(3, 30, 30), overlap=(0, 16, 16))(image, latent)


def test_windows_of_frames_are_blended_linearly():
    x = torch.zeros(1, 8, 1, 4, 4)
    out = tiled(lambda x, *, tiles: x + tiles[0].t.start, tile=(5, 4, 4), overlap=(2, 0, 0))(x)[0, :, 0, 0, 0]
    # the first window (frames 0-4) says 0, the second (3-7) says 3; the two share frames 3 and 4, 2 to 1 and 1 to 2
    torch.testing.assert_close(out, torch.tensor([0, 0, 0, 1.0, 2.0, 3, 3, 3]))


def test_the_result_is_smooth_across_tile_borders():
    x = torch.zeros(1, 1, 1, 16, 200)
    out = tiled(lambda x, *, tiles: x + tiles[0].x.start, tile=(1, 16, 64), overlap=(0, 0, 32))(x)[0, 0, 0]
    assert (out.diff() > -1e-5).all() and out.diff().max() < 8  # steps of 32 between tiles
    assert out[0, 0] == 0 and out[0, -1] == 136


@pytest.mark.parametrize("size", range(1, 300, 7))
def test_tiles_cover_without_a_gap(size):
    edges = starts(size, 64, 24)
    assert edges[0] == 0 and edges[-1] == max(size - 64, 0)
    assert all(0 < b - a <= 40 for a, b in zip(edges, edges[1:], strict=False))


def test_the_released_canvas_has_as_few_tiles_as_cover():
    for size in range(65, 400):
        count = 1
        while (count - 1) * 32 + 64 < size:
            count += 1
        assert starts(size, 64, 32) == [min(k * 32, size - 64) for k in range(count)]


def test_the_released_splitter_covers_the_end():
    assert splitter_starts(400, 120, 93) == [0, 93, 186, 279, 280]
    assert splitter_starts(120, 120, 93) == splitter_starts(7, 120, 93) == [0]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 64, 64), (5, 16, 24), (2, 512, 512)])
def test_windows_are_positive_even_when_rounded(window, shape):
    weights = window(*shape)
    assert weights.shape == shape and weights.dtype == torch.float64 and weights.float().min() > 0


def test_only_the_released_window_is_asymmetric():
    for window, lopsided in zip(WINDOWS, (False, False, True), strict=True):
        weights = window(3, 16, 12)
        assert torch.allclose(weights, weights.flip(0)) and torch.allclose(weights, weights.flip(2))
        assert torch.allclose(weights, weights.flip(1)) != lopsided


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tile_with_nan_raises_an_error_with_its_position(value):
    x = clip(2, 16, 40)
    x[1, 0, 0, 3, 35] = value
    with pytest.raises(FloatingPointError, match=r"frames 0..1, rows 0..15, columns 24..39"):
        tiled(lambda x, *, tiles: x, tile=(2, 16, 16), overlap=(0, 0, 4), batch=3)(x)


def test_an_error_in_a_tile_is_logged_with_its_position(caplog):
    def broken(x, *, tiles):
        if tiles[0] != Tile(slice(0, 2), slice(0, 16), slice(0, 16)):
            raise RuntimeError("out of memory")
        return x

    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="out of memory"):
        tiled(broken, tile=(2, 16, 16), overlap=(0, 0, 4))(clip(2, 16, 40))
    assert "columns 12..27" in caplog.text


def test_half_precision_is_accumulated_in_float32():
    x = clip(2, 40, 40).half()
    kinds = set()

    def note(x, *, tiles):
        kinds.add(x.dtype)
        return x

    out = tiled(note, tile=(2, 16, 16), overlap=(0, 12, 12))(x)
    assert out.dtype == torch.float16 and kinds == {torch.float16}
    torch.testing.assert_close(out, x)
    single = tiled(lambda x, *, tiles: x.half(), tile=(2, 16, 16), overlap=(0, 8, 8))
    assert single(x.float()).dtype == torch.float32  # a network in half precision does not lower the sample's


def test_what_does_not_fit_is_refused():
    x = clip(2, 16, 40)
    with pytest.raises(ValueError, match="overlap 16"):
        tiled(lambda x, *, tiles: x, tile=(2, 16, 16), overlap=(0, 0, 16))(x)
    with pytest.raises(ValueError, match="at least 1"):
        tiled(lambda x, *, tiles: x, tile=(2, 0, 16), overlap=(0, 0, 0))
    with pytest.raises(ValueError, match="same B and T"):
        tiled(lambda x, y, *, tiles: x, tile=(2, 16, 16), overlap=(0, 0, 4))(x, x[:1])
    with pytest.raises(ValueError, match="result"):
        tiled(lambda x, *, tiles: x[:, :1], tile=(2, 16, 16), overlap=(0, 0, 4))(x)
    with pytest.raises(ValueError, match="window"):
        tiled(lambda x, *, tiles: x, tile=(2, 16, 16), overlap=(0, 0, 4), window=torch.zeros)(x)


@pytest.mark.parametrize("size", [(1, 1), (12, 12), (13, 12), (37, 90), (100, 25)])
@pytest.mark.parametrize("halo", [0, 3, 5])
def test_cores_cover_the_grid_once_and_cuts_include_the_halo(size, halo):
    count = torch.zeros(size)
    for patch in patches(size, tile=12, halo=halo):
        count[patch.core] += 1
        for core, cut, length in zip(patch.core, patch.cut, size, strict=True):
            assert cut.stop - cut.start <= 12
            assert cut.start == max(core.start - halo, 0) or length <= 12
            assert cut.stop == min(core.stop + halo, length) or length <= 12
    assert (count == 1).all()


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_convolution_by_patches_equals_the_convolution(scale):
    x, weight = clip(1, 20, 31)[:, 0], torch.randn(3, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    fine = x.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    conv = torch.nn.functional.conv2d
    grid = patches((20, 31), tile=11, halo=3)

    def fn(x, fine, patch):
        enlarged = conv(x, weight, padding=2).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
        return enlarged + conv(fine, weight, padding=2), fine, x

    out = pasted(fn, [x, fine], size=(20, 31), grid=grid)
    torch.testing.assert_close(out[0], fn(x, fine, None)[0])
    assert out[1] is fine and out[2] is x  # what passes through is not copied
    y = x.clone()
    (same,) = pasted(lambda x, patch: [2 * x], [y], size=(20, 31), grid=patches((20, 31), tile=7, halo=0), out=[y])
    assert same is y and torch.equal(y, 2 * x)
    assert pasted(lambda x, patch: None, [x], size=(20, 31), grid=grid) is None


def test_results_of_wrong_sizes_are_refused():
    x = clip(1, 20, 30)[:, 0]
    with pytest.raises(ValueError, match="tile 6 for a halo of 3"):
        patches((20, 30), tile=6, halo=3)
    with pytest.raises(ValueError, match="whole multiple"):
        pasted(lambda x, patch: [x], [x], size=(20, 20), grid=patches((20, 20), tile=10, halo=0))
    x[0, 0, 3, 25] = float("nan")
    with pytest.raises(FloatingPointError, match=r"rows 0..9, columns 21..29"):
        pasted(lambda x, patch: [x + 1], [x], size=(20, 30), grid=patches((20, 30), tile=12, halo=1))
