"""Image and video autoencoder against the recorded encodings and decodings."""

import inspect

import torch

from ldm.nets.autoencoder import AutoencoderKL, posterior
from ldm.nets.sequence_decoder import SequenceAutoencoder
from tests.golden_checks.case import Case, assert_near

LIMIT = 3e-5


def known_settings(cls: type, meta: dict) -> dict:
    """The recorded configuration, reduced to the arguments `cls` has."""
    config = {**meta["ddconfig"], "embed_dim": meta.get("embed_dim", 4), "version": meta.get("version", 1)}
    names = inspect.signature(cls).parameters
    return {k: v for k, v in config.items() if k in names}


def clip_length(meta: dict, frames: int) -> int:
    return meta["ddconfig"].get("num_frames") or meta.get("num_frames") or frames


@torch.no_grad()
def check_image_vae(case: Case) -> None:
    vae = AutoencoderKL(**known_settings(AutoencoderKL, case.meta)).eval()
    vae.load_state_dict(case.weights(), strict=True)
    moments = vae.encode(case["x"])
    code = posterior(moments)
    results = {
        "moments": moments,
        "mean": code.mean,
        "logvar": code.logvar,
        "std": code.std,
        "sample": code.sample(case["eps"]),
        "dec": vae.decode(case["z"]),
    }
    for name, value in results.items():
        if f"out.{name}" in case.tensors:
            assert_near(value, case[f"out.{name}"], limit=LIMIT, what=f"{case.name} {name}")


@torch.no_grad()
def check_video_vae(case: Case) -> None:
    vae = SequenceAutoencoder(**known_settings(SequenceAutoencoder, case.meta)).eval()
    vae.load_state_dict(case.weights(), strict=True)
    num_frames = clip_length(case.meta, case["z"].shape[0])
    moments, features = vae.encode(case["x"])
    assert_near(moments, case["out.moments"], limit=LIMIT, what=f"{case.name} moments")
    for i, feature in enumerate(features):
        recorded = case[f"out.enc_fea.{i}"]
        if "feature_shapes" in case.meta:
            assert list(feature.shape) == case.meta["feature_shapes"][i]
        step = feature.shape[1] // recorded.shape[1]  # only every step-th channel is stored
        assert_near(feature[:, ::step], recorded, limit=LIMIT, what=f"{case.name} feature {i}")
    decodings = [name for name in case.tensors if name.startswith("out.dec_w")]
    assert decodings, f"{case.name}: no decoding recorded"
    for name in decodings:
        weight = float(name.removeprefix("out.dec_w"))
        frames = vae.decode(case["z"], features, num_frames=num_frames, fusion_w=weight)
        assert_near(frames, case[name], limit=LIMIT, what=f"{case.name} {name}")


CHECKS = {"c_vae_kl": check_image_vae, "c_vae_video": check_video_vae}
