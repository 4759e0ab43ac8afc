import pytest
import torch

from ldm.diffusion.denoiser import make_denoise, target, to_eps, to_x0
from ldm.diffusion.schedule import Schedule

SCHEDULE = Schedule.linear_sd()
X0, NOISE = torch.randn(2, 3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("i", [0, 400, 999, torch.tensor([0, 400, 999])])
def test_a_perfect_prediction_means_x0(kind, i):
    x = SCHEDULE.add_noise(X0, NOISE, i)
    perfect = target(kind, X0, NOISE, SCHEDULE, i)
    torch.testing.assert_close(to_x0(perfect, x, SCHEDULE, i, kind), X0)
    torch.testing.assert_close(to_eps(X0, x, SCHEDULE, i), NOISE)


def test_the_network_is_asked_at_its_own_time_step():
    short, asked = SCHEDULE.respaced(4), []

    def predict(x, t):
        asked.append(t)
        return 0 * x

    denoise = make_denoise(predict, short, kind="v")
    for i in range(4):
        torch.testing.assert_close(denoise(X0, i), short.abar[i].item() ** 0.5 * X0)
    assert asked == [0, 333, 666, 999]


def test_an_unknown_prediction_is_named():
    with pytest.raises(ValueError, match="score"):
        make_denoise(lambda x, t: x, SCHEDULE, kind="score")
    with pytest.raises(ValueError, match="score"):
        target("score", X0, NOISE, SCHEDULE, 0)
