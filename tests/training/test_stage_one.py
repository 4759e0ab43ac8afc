"""Stage 1: trained parameters, targets, time steps and the independence of clips."""

import copy

import pytest
import torch

from ldm import config
from ldm.nets.attention import TemporalAttention
from ldm.training.diffusion import Objective, StageOne, enlarged
from ldm.training.optimization import Adam
from tests.methods import toy


def module(**settings) -> StageOne:
    networks = config.instantiate(toy.settings().networks)
    networks = {name: toy.randomise(net, k) for k, (name, net) in enumerate(networks.items())}
    own = {"objective": Objective(), "optimizer": Adam(lr=1e-3), "scale_factor": 0.5, "preview_steps": 2}
    return StageOne(networks, **(own | settings))


def batch_of(numbers, frames=2, size=32):
    gt = torch.stack([toy.clip(frames, size, size, seed=n) for n in numbers])
    return {"gt": gt, "lq": gt[..., ::4, ::4], "index": torch.tensor(numbers)}


@pytest.mark.parametrize("trained", ["released", "repaired", "all"])
def test_trained_parameters_are_selected_by_name(trained):
    model = module(trained=trained)
    unet = model.model["diffusion_model"]
    (place,) = [name for name, part in unet.named_modules() if isinstance(part, TemporalAttention)]
    norms = {f"{place}.norm.weight", f"{place}.norm.bias"}
    names = {name for name, p in unet.named_parameters() if p.requires_grad}
    new = {name for name, _ in unet.named_parameters() if "spade" in name or "temporal" in name}
    assert new and norms <= {name for name, _ in unet.named_parameters()} and not norms & new
    expected = {"released": new, "repaired": new | norms, "all": {name for name, _ in unet.named_parameters()}}
    assert names == expected[trained]
    assert all(p.requires_grad for p in model.structcond_stage_model.parameters())
    frozen = [*model.first_stage_model.parameters(), *model.cond_stage_model.parameters()]
    assert frozen and not any(p.requires_grad for p in frozen)
    (group,) = model.configure_optimizers()["optimizer"].param_groups
    assert len(group["params"]) == len(names) + len(list(model.structcond_stage_model.parameters()))


def test_a_step_changes_only_trained_parameters():
    model = module()
    before = copy.deepcopy(model.state_dict())
    optimizer = model.configure_optimizers()["optimizer"]
    model.losses(batch_of([0]), "train")["loss"].backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}


# ---- the objective


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_loss_is_the_squared_error_of_the_prediction(prediction):
    objective = Objective(prediction=prediction)
    g = torch.Generator().manual_seed(0)
    z, noise, i = (
        torch.randn(3, 4, 5, 5, generator=g),
        torch.randn(3, 4, 5, 5, generator=g),
        torch.tensor([0, 500, 999]),
    )
    # alpha_bar of Stable Diffusion: betas evenly spaced in their roots
    bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)[i]
    signal, sigma = (x.sqrt().float().view(-1, 1, 1, 1) for x in (bar, 1 - bar))
    wanted = {"eps": noise, "v": signal * noise - sigma * z, "x0": z}[prediction]
    assert objective.terms(wanted, z, noise, i)["loss"] < 1e-10
    off = objective.terms(wanted + 0.5, z, noise, i)
    assert off["loss"].item() == pytest.approx(0.25, rel=1e-4) and off["loss"] is off["loss_simple"]
    assert not objective.terms(wanted.requires_grad_(), z, noise, i)["loss_vlb"].requires_grad


@pytest.mark.parametrize(("per", "different"), [("frame", True), ("clip", False)])
def test_time_steps_are_drawn_per_frame_or_per_clip(per, different):
    objective = Objective(timestep_per=per, train_steps=50)
    i, noise = objective.draw("train", torch.tensor([3, 8]), torch.zeros(10, 1, 2, 2))
    assert i.shape == (10,) and noise.shape == (10, 1, 2, 2) and 0 <= i.min() and i.max() < 50
    clips = i.view(2, 5)
    assert (len(set(clips[0].tolist())) > 1) == different and clips[0, 0] != clips[1, 0]
    again, _ = objective.draw("train", torch.tensor([8]), torch.zeros(5, 1, 2, 2))
    assert torch.equal(again, clips[1])
    other, _ = objective.draw("validation", torch.tensor([8]), torch.zeros(5, 1, 2, 2))
    assert not torch.equal(other, clips[1])


def test_the_loss_of_a_batch_is_the_mean_of_its_clips():
    model = module()
    with torch.no_grad():
        together = model.losses(batch_of([4, 9]), "train")
        alone = [model.losses(batch_of([n]), "train") for n in (4, 9)]
    for name, value in together.items():
        assert value.item() == pytest.approx(sum(terms[name].item() for terms in alone) / 2, rel=1e-4), name


def test_latents_are_scaled_samples_of_the_frames():
    model, batch = module(), batch_of([1])
    z_lq, z_gt = model.latents(batch)
    assert z_lq.shape == z_gt.shape == (2, 4, 8, 8) and not z_gt.requires_grad
    none = torch.zeros_like(z_gt)
    with torch.no_grad():
        means = [
            model.first_stage_model.posterior(model.first_stage_model.encode(x)).mean * 0.5
            for x in (enlarged(batch), batch["gt"][0] * 2 - 1)
        ]
    for mean, replayed, drawn in zip(means, model.latents(batch, (none, none)), (z_lq, z_gt), strict=True):
        torch.testing.assert_close(replayed, mean)
        assert not torch.equal(drawn, replayed)


def test_previews_depend_only_on_the_sample():
    model, batch = module().eval(), batch_of([5])
    state = torch.get_rng_state()
    out = model.restore(batch)
    assert out.shape == batch["gt"].shape and out.min() >= 0 and out.max() <= 1
    assert torch.equal(out, model.restore(batch)) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trained": "some"}, "trained='some'"),
        ({"scale_factor": 0.0}, "scale_factor=0"),
        ({"preview_steps": 0}, "steps=0"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        module(**settings)
    with pytest.raises(ValueError, match="timestep_per='batch'"):
        Objective(timestep_per="batch")
