import pytest
import torch

from ldm.diffusion.clip_noise import ReleasedClipNoise


def test_runs_follow_one_another_on_one_generator():
    source, generator = ReleasedClipNoise(10), torch.Generator().manual_seed(10)
    for frames, size in ((2, (3, 4)), (5, (2, 2))):
        low, latents = source.next_run(frames, size)
        assert torch.equal(low, torch.randn(1, 3, frames, *size, generator=generator).transpose(1, 2))
        assert torch.equal(latents, torch.randn(1, 4, frames, *size, generator=generator).transpose(1, 2))


def test_a_seed_that_no_generator_takes_is_refused():
    with pytest.raises(ValueError, match="got seed -1"):
        ReleasedClipNoise(-1)
