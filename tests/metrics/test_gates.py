"""What a model must pass: figures of an autoencoder beside the best linear code."""

import numpy as np
import pytest

from ldm.metrics.gates import LinearCode, block_means, kept, low_frequency_part


def frames(count: int = 2, *, height: int = 32, width: int = 48) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def test_block_means_leave_out_what_is_over():
    frame = np.zeros((20, 33, 3), np.uint8)
    frame[:16, 16:32] = 200
    assert block_means(frame)[..., 0].tolist() == [[0, 200]]
    with pytest.raises(ValueError, match="got a frame of 48x8, expected at least 16 pixels a side"):
        block_means(np.zeros((8, 48, 3), np.uint8))


def test_a_shift_is_all_low_frequency_and_a_chequerboard_none():
    truth = np.full((32, 32, 3), 100, np.uint8)
    board = truth + 5 * (np.indices((32, 32)).sum(0) % 2 * 2 - 1)[..., None]
    assert low_frequency_part(truth + 3, truth) == pytest.approx(1)
    assert low_frequency_part(board.astype(np.uint8), truth) == pytest.approx(0)
    assert low_frequency_part(truth, truth) == 0


def test_a_linear_code_of_all_numbers_is_exact_and_of_few_is_the_best_projection():
    given = frames()
    assert np.array_equal(LinearCode(given, numbers=48, side=4)(given[0]), given[0])
    blocks = np.stack(given).reshape(2, 8, 4, 12, 4, 3).swapaxes(2, 3).reshape(-1, 48).astype(float)
    values = np.linalg.svd(blocks - blocks.mean(0), compute_uv=False)
    expected = np.square(values[8:]).sum() / blocks.size
    code = LinearCode(given, numbers=8, side=4)
    errors = [np.square(code(frame).astype(float) - frame).mean() for frame in given]
    assert np.mean(errors) == pytest.approx(expected, rel=0.05)  # rounded and clipped to grey levels


def test_figures_of_an_exact_code():
    figures = kept(lambda frame: frame, frames())
    assert figures == {"psnr": float("inf"), "sharpness": 1.0, "low_frequency": 0.0}
