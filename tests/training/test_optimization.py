import pytest
import torch
from torch import nn

from ldm.training.optimization import Adam


def parameters():
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2), requires_grad=False)]


def test_the_optimizer_gets_only_trained_parameters():
    made = Adam(lr=1e-3, betas=[0.5, 0.9], weight_decay=0.1)(iter(parameters()))
    (group,) = made["optimizer"].param_groups
    assert [p.numel() for p in group["params"]] == [3] and "lr_scheduler" not in made
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (1e-3, (0.5, 0.9), 0.1, 1e-8)


def test_weight_decay_is_decoupled():
    """The first step of Adam has the size of the learning rate for any gradient; the decay is added to it."""
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = Adam(lr=0.01, weight_decay=0.5)([weight])["optimizer"]
    weight.grad = torch.tensor([300.0])
    optimizer.step()
    assert weight.item() == pytest.approx(2 - 0.01 * 0.5 * 2 - 0.01, rel=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 19, 20, 100])
def test_the_rate_rises_and_falls_to_zero(steps):
    made = Adam(lr=1e-3, schedule="cosine", steps=steps)(parameters())
    assert made["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(steps):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    last = made["optimizer"].param_groups[0]["lr"]
    assert all(0 < rate <= 1e-3 * (1 + 1e-9) for rate in rates) and (last < 1e-6 or steps == 1)
    assert steps < 19 or (max(rates) > 0.95e-3 and rates[0] < 0.5e-3)


def test_eps_reaches_the_optimizer():
    assert Adam(lr=1, eps=1e-4)(parameters())["optimizer"].param_groups[0]["eps"] == 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0}, "got lr 0"),
        ({"lr": float("nan")}, "got lr nan"),
        ({"lr": 1, "eps": 0}, "eps 0"),
        ({"lr": 1, "schedule": "linear"}, "'linear'"),
        ({"lr": 1, "schedule": "cosine"}, "0 steps"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Adam(**settings)


@pytest.mark.parametrize("schedule", ["none", "cosine"])
def test_a_restored_optimizer_takes_the_current_settings(schedule):
    def made(lr, steps_done=0, **settings):
        adam = Adam(lr=lr, schedule=schedule, steps=9, **settings)
        parts = adam(parameters())
        for _ in range(steps_done):
            parts["optimizer"].step()
            if "lr_scheduler" in parts:
                parts["lr_scheduler"]["scheduler"].step()
        return adam, parts["optimizer"], parts.get("lr_scheduler", {}).get("scheduler")

    saved, expected = made(1e-3, 4)[1].state_dict(), made(3e-4, 5)[1].param_groups[0]["lr"]
    same, restored, _ = made(1e-3)
    restored.load_state_dict(saved)
    before = {key: value for key, value in restored.param_groups[0].items() if key != "params"}
    same.apply_to(restored)
    assert {key: value for key, value in restored.param_groups[0].items() if key != "params"} == before
    lower, restored, rate = made(3e-4, betas=[0.5, 0.8], weight_decay=0.2)
    restored.load_state_dict(saved)
    if rate is not None:
        rate.load_state_dict({**rate.state_dict(), "last_epoch": 4})
    lower.apply_to(restored)
    restored.step()
    if rate is not None:
        rate.step()
    (group,) = restored.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.5, 0.8), 0.2)
    assert group["lr"] == pytest.approx(expected, rel=1e-9)
