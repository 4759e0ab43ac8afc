import pytest
import torch

from ldm.diffusion.denoiser import target, to_eps, to_x0
from ldm.diffusion.schedule import Schedule

SCHEDULE = Schedule.linear_sd()
X0, NOISE = torch.randn(2, 3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("i", [0, 400, 999, torch.tensor([0, 400, 999])])
def test_an_exact_prediction_gives_x0(kind, i):
    x = SCHEDULE.add_noise(X0, NOISE, i)
    perfect = target(kind, X0, NOISE, SCHEDULE, i)
    torch.testing.assert_close(to_x0(perfect, x, SCHEDULE, i, kind), X0)
    torch.testing.assert_close(to_eps(X0, x, SCHEDULE, i), NOISE)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="score"):
        to_x0(X0, X0, SCHEDULE, 0, "score")
    with pytest.raises(ValueError, match="score"):
        target("score", X0, NOISE, SCHEDULE, 0)
