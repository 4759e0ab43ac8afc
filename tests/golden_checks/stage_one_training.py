"""Stage 1: latents of a batch, losses, gradients, one AdamW step, and which parameters are trained."""

import torch

from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.structure import StructureEncoder
from ldm.nets.text import FixedContext
from ldm.nets.unet import UNet
from ldm.training.diffusion import Objective, StageOne
from ldm.training.optimization import Adam
from tests.golden_checks.case import Case, assert_near, recipe_normal
from tests.golden_checks.sampling import STRUCT_KEYS, UNET_KEYS, chosen

LATENT_LIMIT, OUTPUT_LIMIT = 3e-5, 3e-5
LOSS_LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4  # relative
STEP_LIMIT = 1e-6  # of a weight after one step of 5e-5


class Recorded(torch.nn.Module):
    """The text context of the case."""

    def __init__(self, context: torch.Tensor) -> None:
        super().__init__()
        self.context = context

    def forward(self) -> torch.Tensor:
        return self.context


def stage_one(case: Case) -> StageOne:
    unet = UNet(**chosen(case.meta["unet"], (*UNET_KEYS, "semb_channels")))
    config = case.meta["vae"]["ddconfig"]
    vae = {key: config[key] for key in ("ch", "ch_mult", "num_res_blocks", "z_channels")}
    networks = {
        "unet": unet,
        "structure": StructureEncoder(**chosen(case.meta["struct"], STRUCT_KEYS)),
        "autoencoder": AutoencoderKL(**vae, embed_dim=case.meta["vae"]["embed_dim"]),
        "text": FixedContext(width=unet.context_dim),
    }
    settings = case.meta["optimizer"]
    adam = Adam(lr=settings["lr"], betas=settings["betas"], weight_decay=settings["weight_decay"])
    prediction = case.meta.get("parameterization", "eps")
    model = StageOne(networks, objective=Objective(prediction=prediction), optimizer=adam, scale_factor=0.18215)
    own = model.state_dict()
    model.load_state_dict({name: value for name, value in case.recipe_weights().items() if name in own})
    context = recipe_normal("cond.emb", (1, 77, unet.context_dim), 7)
    model.cond_stage_model["model"] = Recorded(context)
    return model


def check_stage_one(case: Case) -> None:
    model, frames = stage_one(case), case.meta["frames"]
    batch = {"lq": case["lqs"], "gt": case["gts"]}
    z_lq, z_gt = model.latents(batch, (case["eps_lq"], case["eps_gt"]))
    assert_near(z_lq, case["out.z_lq"], limit=LATENT_LIMIT, what="z_lq")
    assert_near(z_gt, case["out.z_gt"], limit=LATENT_LIMIT, what="z_gt")

    i, noise = case["t"].flatten(), case["noise"]
    assert torch.equal(model.objective.schedule.t[i], case["t_ori"].flatten())
    prediction = model.predict(
        model.objective.schedule.add_noise(z_gt, noise, i), z_lq, case["t_ori"].flatten(), frames=frames
    )
    assert_near(prediction, case["out.model_output"], limit=OUTPUT_LIMIT, what="model output")
    terms = model.terms(z_lq, z_gt, i, noise, frames=frames)
    for name, value in case.meta["loss_dict"].items():
        assert_near(terms[name.removeprefix("train/")], torch.tensor(value), limit=LOSS_LIMIT * abs(value), what=name)
    assert_near(terms["loss"].reshape(1), case["out.loss"].reshape(1), limit=LOSS_LIMIT * abs(value), what="loss")
    check_gradients(model, terms["loss"], case)


def check_gradients(model: StageOne, loss: torch.Tensor, case: Case) -> None:
    loss.backward()
    named = dict(model.named_parameters())
    trained = {name for name, parameter in named.items() if parameter.requires_grad}
    assert trained == set(case.meta["grad_norms"]), sorted(trained ^ set(case.meta["grad_norms"]))[:5]
    assert len(trained) == case.meta["n_trainable"]
    for name, norm in case.meta["grad_norms"].items():
        # some vanish by construction: what is left there is rounding
        limit = GRADIENT_LIMIT * norm + 1e-7
        assert_near(named[name].grad.norm(), torch.tensor(norm), limit=limit, what=f"gradient norm of {name}")
    recorded = [name.removeprefix("out.grad.") for name in case.tensors if name.startswith("out.grad.")]
    for name in recorded:
        expected = case[f"out.grad.{name}"]
        limit = GRADIENT_LIMIT * expected.abs().max().item()
        assert_near(named[name].grad, expected, limit=limit, what=f"gradient of {name}")
    model.configure_optimizers()["optimizer"].step()
    for name in recorded:
        assert_near(named[name], case[f"out.after_step.{name}"], limit=STEP_LIMIT, what=f"{name} after a step")


CHECKS = {"h_stage1": check_stage_one}
