import pytest
import torch

from ldm.diffusion.noise import FrameNoise, ReleasedNoise

SHAPE = (4, 8, 12)


def test_the_noise_of_a_frame_does_not_depend_on_the_other_frames():
    whole = FrameNoise(7)(3, range(10), SHAPE)
    noise = FrameNoise(7)
    later, earlier = noise(3, range(5, 10), SHAPE), noise(3, range(5), SHAPE)
    assert torch.equal(torch.cat([earlier, later]), whole)
    assert torch.equal(noise(3, [8, 2], SHAPE), whole[[8, 2]])
    assert whole.dtype == torch.float32 and whole.shape == (10, *SHAPE)


def test_noise_differs_for_every_seed_step_and_frame():
    noise = FrameNoise(7)
    drawn = [noise(step, range(4), SHAPE) for step in (0, 1, 49, "start", "posterior")]
    drawn += [FrameNoise(seed)(0, range(4), SHAPE) for seed in (0, 8, 7 + 2**32)]
    flat = torch.cat(drawn).flatten(1)
    correlation = torch.corrcoef(flat).fill_diagonal_(0)
    assert correlation.abs().max() < 0.25  # 384 numbers a frame, 496 pairs: four and a half deviations of 0.051


def test_it_is_standard_normal():
    x = FrameNoise(1)("start", range(100), (4, 16, 16))
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01


def test_the_numbers_do_not_change_between_releases():
    x = FrameNoise(42)(5, [17], (1, 4, 4)).flatten()
    torch.testing.assert_close(x[:3], torch.tensor(KNOWN), rtol=0, atol=1e-5)


KNOWN = [-1.547546, -0.077969, -1.336927]


@pytest.mark.parametrize(("seed", "step", "frame"), [(-1, 0, 0), (2**63, 0, 0), (1, -1, 0), (1, 0, -1)])
def test_negative_steps_and_frames_are_refused(seed, step, frame):
    with pytest.raises(ValueError, match="got seed|got step"):
        FrameNoise(seed)(step, [frame], SHAPE)


def test_released_noise_replays_the_global_generator():
    torch.manual_seed(42)
    posterior = torch.randn(5, *SHAPE)
    start = torch.randn_like(posterior.contiguous(memory_format=torch.channels_last))
    steps = [torch.randn(5, *SHAPE) for _ in range(2)]
    noise = ReleasedNoise(42)
    replay = [noise(name, range(5), SHAPE) for name in ("posterior", "start", 1, 0)]
    assert all(torch.equal(a, b) for a, b in zip([posterior, start, *steps], replay, strict=True))
    assert torch.equal(ReleasedNoise(42)("posterior", range(100, 105), SHAPE), posterior)  # each patch starts again


@pytest.mark.parametrize("source", [FrameNoise, ReleasedNoise])
@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_an_invalid_seed_is_refused(source, seed):
    with pytest.raises(ValueError, match=f"got seed {seed}, expected 0 to"):
        source(seed)
