"""Steps of the released training: draws, guidance, prediction, loss, gradients, weights after the last step."""

from random import Random

import torch
from torch import Tensor, nn

from ldm.diffusion.scheduler import Scheduler
from ldm.training.optimization import Adam
from ldm.training.temporal_control import ControlDraws, ControlNetworks, control_loss
from tests.golden_checks.case import Case, assert_near
from tests.golden_checks.stablevsr.folder import INPUT, NETWORK, TIGHT, network, weight_file


class RecordedFlow:
    """Returns the recorded flow and compares what it is asked about."""

    def __init__(self, case: Case) -> None:
        self.case, self.step = case, 0

    def __call__(self, target: Tensor, source: Tensor) -> Tensor:
        for name, picture in (("target", target), ("source", source)):
            expected = self.case[f"s{self.step}_flow_{name}_upscaled"]
            assert_near(2 * picture - 1, expected, limit=INPUT, what=f"flow {name} of step {self.step}")
        return self.case["flow"]


def draws_of(case: Case, step: int, recorded: dict) -> ControlDraws:
    assert [2 * round(draw) for draw in recorded["random_draws"]] == recorded["neighbour_index"]
    assert case[f"s{step}_timesteps"].tolist() == recorded["timesteps"]
    names = ("vae_noise_current", "vae_noise_prev", "noise", "noise_prev")
    noises = [case[f"s{step}_{name}"] for name in names]
    return ControlDraws(torch.tensor(recorded["neighbour_index"]), *noises, case[f"s{step}_timesteps"])


def check_gradients(case: Case, control: nn.Module, step: int, recorded: dict) -> None:
    named = dict(control.named_parameters())
    assert named.keys() == recorded["per_parameter_grad_norm"].keys()
    for name, norm in recorded["per_parameter_grad_norm"].items():
        assert_near(named[name].grad.norm(), torch.tensor(norm), limit=INPUT, what=f"gradient norm of {name}")
    for name in (name for name in case.tensors if name.startswith(f"grad{step}.")):
        value = named[name.removeprefix(f"grad{step}.")].grad
        assert_near(value, case[name], limit=INPUT, what=name)


def check(case: Case) -> None:
    arguments, scheduler = case.meta["arguments"], Scheduler.from_config(case.meta["scheduler"])
    flow = RecordedFlow(case)
    networks = ControlNetworks(
        control=network(case, "ControlNetModel").requires_grad_(True),
        unet=network(case, "UNet2DConditionModel"),
        autoencoder=network(case, "AutoencoderKL"),
        flow=flow,
        scale_factor=weight_file(case, "AutoencoderKL").meta["config"]["scaling_factor"],
    )
    betas = (arguments["adam_beta1"], arguments["adam_beta2"])
    rates = {"lr": arguments["learning_rate"], "eps": arguments.get("adam_epsilon", 1e-8)}
    adam = Adam(**rates, betas=betas, weight_decay=arguments["adam_weight_decay"])
    optimizer = adam(networks.control.parameters())["optimizer"]
    stream = Random(arguments["seed"])
    for step, recorded in enumerate(case.meta["steps"]):
        assert [stream.random() for _ in recorded["random_draws"]] == recorded["random_draws"]
        order, flow.step = case.meta["item_order_per_step"][step], step
        batch = {name: case[name][order] for name in ("lq", "gt")}
        found = control_loss(networks, scheduler, batch, draws_of(case, step, recorded), context=case["text_embedding"])
        for name, key, bound in (
            ("tcm_condition", "condition", NETWORK),
            ("pred", "prediction", NETWORK),
            ("target", "target", INPUT),
        ):
            assert_near(found[key], case[f"s{step}_{name}"], limit=bound, what=f"{name} of step {step}")
        assert_near(found["loss"], torch.tensor(case.meta["loss"][step]), limit=INPUT, what=f"loss of step {step}")
        optimizer.zero_grad()
        found["loss"].backward()
        check_gradients(case, networks.control, step, recorded)
        norm = nn.utils.clip_grad_norm_(networks.control.parameters(), arguments["max_grad_norm"])
        expected = torch.tensor(case.meta["grad_norm_before_clipping"][step])
        assert_near(norm, expected, limit=INPUT, what=f"gradient norm of step {step}")
        optimizer.step()
    final = networks.control.state_dict()
    for name in (name for name in case.tensors if name.startswith("final.")):
        assert_near(final[name.removeprefix("final.")], case[name], limit=TIGHT, what=name)


CHECKS = {"train_steps": check}
