import pytest
import torch

from ldm.diffusion.bidirectional import (
    GuidedDenoiser,
    Unit,
    conditioned_prediction,
    control_scales,
    ends_clean,
    sample_scene,
    sampling_order,
    texture_guidance,
)
from ldm.diffusion.noise import FrameNoise, SequentialNoise
from ldm.diffusion.scheduler import Scheduler

UPSCALER = {"beta_schedule": "scaled_linear", "clip_sample": False, "prediction_type": "v_prediction"}


def scheduler(**changes) -> Scheduler:
    return Scheduler.from_config(UPSCALER | changes)


class Recorder:
    """Stands for the networks: predictions depend on all that they are given, and calls are kept."""

    def __init__(self) -> None:
        self.decoded, self.conditions = [], []

    def predict(self, z, lr, t, condition, scale):
        self.conditions.append(None if condition is None else condition.clone())
        seen = 0 if condition is None else scale * condition.mean()
        return 0.3 * z + 0.1 * lr.mean() + 0.001 * t + 0.2 * seen

    def decode(self, x0):
        self.decoded.append(x0.clone())
        return x0[:, :3].repeat_interleave(4, -1).repeat_interleave(4, -2)

    def model(self, **changes) -> GuidedDenoiser:
        def flow(target, source):
            return torch.full((1, 2, 16, 24), 0.5 * (target - source))

        return GuidedDenoiser(self.predict, self.decode, flow, **changes)


def noise(step, frame):
    return FrameNoise(7)(step, [frame], (4, 4, 6))


def scene(frames: int, steps: int, **options):
    recorder, lr = Recorder(), [torch.full((1, 3, 4, 6), 0.1 * k) for k in range(frames)]
    plan = options.pop("scheduler", scheduler(steps_offset=1))
    grid = {"grid": options.pop("grid")} if "grid" in options else {}
    return sample_scene(lr, model=recorder.model(**grid), scheduler=plan, steps=steps, noise=noise, **options), recorder


def test_passes_alternate_and_start_without_guidance():
    forwards = [Unit(0, 0, 0, None), Unit(0, 1, 1, 0), Unit(0, 2, 2, 1)]
    assert list(sampling_order(3, 2)) == [*forwards, Unit(1, 0, 2, None), Unit(1, 1, 1, 2), Unit(1, 2, 0, 1)]


def test_the_control_network_counts_in_steps_that_lie_inside_its_share():
    assert control_scales(4, 0.7) == [0.7] * 4
    assert control_scales(4, 0.7, start=0.25, end=0.75) == [0, 0.7, 0.7, 0]
    assert control_scales(3, start=0.1, end=0.9) == [0, 1, 0]


def test_a_frame_is_guided_by_the_clean_estimate_of_the_one_before():
    visits = []
    done, recorder = scene(3, 2, on_visit=lambda *seen: visits.append(seen))
    flows = {
        (target, source): torch.full((1, 2, 16, 24), 0.5 * (target - source))
        for target in range(3)
        for source in range(3)
    }
    for (unit, _, condition), (_, before, _) in zip(visits[1:], visits, strict=False):
        if unit.previous is None:
            assert condition is None
            continue
        picture = before.x0[:, :3].repeat_interleave(4, -1).repeat_interleave(4, -2)
        assert torch.equal(condition, texture_guidance(picture, flows[unit.frame, unit.previous]))
    assert len(done.latents) == len(done.pictures) == 3


@pytest.mark.parametrize(
    ("changes", "saved"), [({"steps_offset": 1}, 3), ({}, 3), ({"variance_type": "fixed_large", "steps_offset": 1}, 0)]
)
def test_guidance_pictures_of_a_clean_last_step_are_the_results(changes, saved):
    plan = scheduler(**changes)
    assert ends_clean(plan.sampling(3)) == bool(saved)
    done, recorder = scene(4, 3, scheduler=plan)
    assert len(recorder.decoded) == 3 * 3 + 4 - saved
    for latent, picture in zip(done.latents, done.pictures, strict=True):
        again = latent[:, :3].repeat_interleave(4, -1).repeat_interleave(4, -2)
        torch.testing.assert_close(picture, again, atol=1e-6, rtol=0)


def test_a_schedule_that_ends_early_is_decoded_at_the_end():
    assert not ends_clean(scheduler(steps_offset=25).sampling(51))


def test_a_single_frame_has_no_guidance():
    done, recorder = scene(1, 3)
    assert recorder.conditions == [None] * 3 and len(done.pictures) == 1


def test_steps_without_control_decode_nothing_but_the_results():
    _, recorder = scene(3, 4, scales=[0, 0, 0, 0])
    assert len(recorder.decoded) == 3
    whole, _ = scene(3, 4)
    silent, _ = scene(3, 4, scales=[0, 1, 1, 0])
    assert not torch.equal(whole.latents[1], silent.latents[1])


def test_the_grid_of_the_warp_is_a_choice():
    released, _ = scene(3, 2)
    aligned, _ = scene(3, 2, grid="aligned")
    assert not torch.equal(released.latents[1], aligned.latents[1])


def test_noise_is_not_drawn_for_time_step_zero():
    asked = []

    def counted(step, frame):
        asked.append((step, frame))
        return noise(step, frame)

    lr, recorder = [torch.zeros(1, 3, 4, 6)] * 2, Recorder()
    sample_scene(lr, model=recorder.model(), scheduler=scheduler(), steps=2, noise=counted)
    assert asked == [("start", 0), ("start", 1), (0, 0), (0, 1)]


def test_a_latent_that_is_no_number_names_its_step():
    lr, recorder = [torch.full((1, 3, 4, 6), float("nan"))], Recorder()
    with pytest.raises(FloatingPointError, match="after step 2"):
        sample_scene(lr, model=recorder.model(), scheduler=scheduler(), steps=3, noise=noise)


def test_sequential_noise_is_one_stream_frame_by_frame():
    source, plain = SequentialNoise(3), torch.Generator().manual_seed(3)
    first = source("start", range(2), (4, 5, 6))
    expected = [torch.randn(1, 4, 5, 6, generator=plain) for _ in range(3)]
    assert torch.equal(first, torch.cat(expected[:2])) and torch.equal(source(0, [9], (4, 5, 6)), expected[2])


def test_prediction_without_a_condition_is_the_denoiser_alone():
    calls = []

    def unet(x, t, context, residuals=None):
        calls.append(residuals)
        return x[:, :4]

    predict = conditioned_prediction(unet, lambda *_, scale: scale, torch.zeros(1, 2, 3))
    z, lr, condition = torch.randn(1, 4, 2, 2), torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 8, 8)
    assert torch.equal(predict(z, lr, 5, None, 1.0), z)
    predict(z, lr, 5, condition, 0.0)
    predict(z, lr, 5, condition, 0.5)
    assert calls == [None, None, 0.5]
