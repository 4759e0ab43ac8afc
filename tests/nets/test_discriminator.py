import pytest
import torch

from ldm.nets.discriminator import PatchGAN


def test_names_and_biases_are_the_released_ones():
    names = set(PatchGAN(ndf=4).state_dict())
    convolutions = {f"main.{k}.weight" for k in (0, 2, 5, 8, 11)} | {"main.0.bias", "main.11.bias"}
    norms = {
        f"main.{k}.{part}"
        for k in (3, 6, 9)
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert names == convolutions | norms


@pytest.mark.parametrize("n_layers, field", [(1, 16), (2, 34), (3, 70)])
def test_a_score_sees_a_patch_of_the_known_size(n_layers, field):
    torch.manual_seed(0)
    net = PatchGAN(ndf=4, n_layers=n_layers).eval()
    x = torch.randn(1, 3, 128, 128, requires_grad=True)
    scores = net(x)
    assert scores.shape[1] == 1
    middle = scores.shape[-1] // 2
    scores[0, 0, middle, middle].backward()
    seen = x.grad.abs().sum(dim=1)[0].nonzero()
    assert (seen.amax(dim=0) - seen.amin(dim=0) + 1).tolist() == [field, field]


def test_scores_of_a_released_size_image():
    assert PatchGAN(ndf=4)(torch.zeros(2, 3, 64, 96)).shape == (2, 1, 6, 10)


def test_start_values_are_normal_with_deviation_0_02():
    torch.manual_seed(0)
    net = PatchGAN()
    for k, mean in ((0, 0.0), (2, 0.0), (8, 0.0), (9, 1.0), (11, 0.0)):
        weight = net.main[k].weight
        assert weight.mean().item() == pytest.approx(mean, abs=0.003)
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert net.main[9].bias.abs().max() == 0
