"""Initial weights of a training: the names of Stable Diffusion are mapped, and every unfilled weight is reported."""

import re

import pytest
import torch

from ldm import config
from ldm.engine.assemble import CONFIGS
from ldm.training.diffusion import Objective, StageOne
from ldm.training.initial import start_from
from ldm.training.optimization import Adam
from ldm.weights import checkpoint
from tests.methods import toy

STAGE_ONE = CONFIGS / "mgldvsr" / "mgldvsr_512_realbasicvsr_deg.yaml"


def stage_one(seed: int, middle: str) -> StageOne:
    """Toy networks with different random weights."""
    settings = toy.settings(f"+networks.unet.params.middle={middle}")
    networks = config.instantiate(settings.networks)
    networks = {name: toy.randomise(net, seed + k) for k, (name, net) in enumerate(networks.items())}
    return StageOne(networks, objective=Objective(), optimizer=Adam(lr=1), scale_factor=0.5)


def released_entries(file) -> list[dict]:
    """`init` of the released configuration, with the given weight file."""
    return config.plain(config.load(STAGE_ONE, overrides=[f"sd_weights={file}"]))["init"]


@pytest.fixture(scope="module")
def diffusion():
    """Stage 1 whose middle block is numbered as in Stable Diffusion, followed by the new layers."""
    return stage_one(1, "repaired")


def is_new(name: str) -> bool:
    return (
        "spade" in name or "temporal" in name or re.search(r"diffusion_model\.middle_block\.[345]\.", name) is not None
    )


@pytest.fixture(scope="module")
def file(diffusion, tmp_path_factory):
    """The weights as in the file of Stable Diffusion: no layers for video, and entries of averaged weights."""
    path = tmp_path_factory.mktemp("sd") / "v2-1_512-ema-pruned.safetensors"
    kept = {k: v for k, v in diffusion.state_dict().items() if not k.startswith("structcond") and not is_new(k)}
    checkpoint.save(path, kept | {"model_ema.decay": torch.ones(()), "alphas_cumprod": torch.ones(3)})
    return path


def test_the_middle_block_of_stable_diffusion_is_mapped(diffusion, file):
    """Its three layers become 0, 2 and 4; the released code leaves the last two random (bug B3)."""
    model = stage_one(100, "released")
    start_from(model, released_entries(file))
    source, own = diffusion.state_dict(), model.state_dict()
    moved = {"0": "0", "1": "2", "2": "4"}
    place = re.compile(r"(model\.diffusion_model\.middle_block\.)(\d)(\..*)")
    for name, value in source.items():
        if name.startswith("structcond") or is_new(name):
            continue
        found = place.fullmatch(name)
        assert torch.equal(own[found[1] + moved[found[2]] + found[3] if found else name], value), name


def test_unfilled_weights_are_reported_with_a_reason(file):
    model, before = stage_one(100, "released"), stage_one(100, "released").state_dict()
    lines = start_from(model, released_entries(file))
    untouched = [k for k, v in model.state_dict().items() if torch.equal(v, before[k])]
    untouched = [name for name in untouched if name.startswith("model.diffusion_model.")]
    pattern = r"(\d+) entries .* keep their initial values: \w+"
    reported = [int(number) for line in lines for number in re.findall(pattern, line)]
    assert sum(reported) == len(untouched) and len(reported) == 3
    named = [name for name in untouched if "spade" in name or "temporal" in name or "middle_block.3.norm" in name]
    assert named == untouched and len([name for name in named if "norm" in name and "middle_block.3" in name]) == 2
    assert sum(" entries from " in line for line in lines) == 3


def test_a_missing_weight_that_is_not_tolerated_is_an_error(file, tmp_path):
    state = checkpoint.read(file)
    for gone in ("model.diffusion_model.out.2.bias", "model.diffusion_model.middle_block.1.norm.weight"):
        checkpoint.save(tmp_path / "less.safetensors", {k: v for k, v in state.items() if k != gone})
        model = stage_one(100, "released")
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(checkpoint.CheckpointError, match="1 missing"):
            start_from(model, released_entries(tmp_path / "less.safetensors"))
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    extra = {"model.diffusion_model.more.weight": torch.zeros(1)}
    checkpoint.save(tmp_path / "more.safetensors", state | extra)
    with pytest.raises(checkpoint.CheckpointError, match="1 unexpected: more.weight"):
        start_from(stage_one(100, "released"), released_entries(tmp_path / "more.safetensors"))


def linear_file(path):
    checkpoint.save(path, {"old.weight": torch.ones(2, 3), "old.bias": torch.ones(2), "other": torch.zeros(1)})
    return str(path)


def test_names_in_the_file_may_have_another_prefix(tmp_path):
    model = torch.nn.ModuleDict({"new": torch.nn.Linear(3, 2)})
    path = linear_file(tmp_path / "x.safetensors")
    start_from(model, [{"file": path, "modules": ["new"], "names": "old."}])
    assert (model["new"].weight == 1).all() and (model["new"].bias == 1).all()
    start_from(model, [{"file": path, "modules": ["new"], "names": "", "ignore": ["other"], "rename": {"old.": ""}}])
    entry = {"file": path, "modules": ["new"], "names": "", "rename": {"old.": ""}}
    with pytest.raises(checkpoint.CheckpointError, match="unexpected: other"):
        start_from(model, [entry])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"modules": ["new"]}, "init: got .*expected file and modules"),
        ({"file": None, "modules": ["new"]}, "expected file and modules"),
        ({"file": "FILE", "modules": ["new"], "tolerated": {}}, "expected file and modules"),
        ({"file": "FILE", "modules": ["knew"]}, "no module 'knew', expected one of new"),
        ({"file": "FILE", "modules": ["new"]}, "holds no weights for new"),
        (3, "init: got int"),
    ],
)
def test_an_invalid_entry_is_refused(tmp_path, entry, message):
    path = linear_file(tmp_path / "x.safetensors")
    if isinstance(entry, dict) and entry.get("file"):
        entry = {**entry, "file": path}
    with pytest.raises(ValueError, match=message):
        start_from(torch.nn.ModuleDict({"new": torch.nn.Linear(3, 2)}), [entry])
