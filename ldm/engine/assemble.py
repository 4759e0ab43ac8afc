"""From weight files and YAML to a method that restores frames."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from ldm import config
from ldm.engine.device import exact_float32
from ldm.weights import checkpoint

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "assets" / "tiny"
RELEASED_CONFIG = ROOT / "configs" / "mgldvsr" / "mgldvsr_512_realbasicvsr_deg.yaml"
PRESETS = ROOT / "configs" / "presets"
CARD = "model.yaml"  # beside weights: the configuration they were trained with
FLOW_FILES = {"raft": "raft-things", "spynet": "spynet_sintel_final-3d2a1287"}
STAGES = {"stage_one": "mgldvsr_unet", "stage_two": "video_vae_cfw"}
NETWORKS = ("unet", "structure", "autoencoder", "sequence_decoder", "text", "flow")
NEEDED = [f"networks.{name}" for name in NETWORKS]
NEEDED += [f"method.params.{name}" for name in ("sampling", "windows", "decoding", "decoding.params.windows")]
EXPECTED = f"a folder with {' and '.join(STAGES.values())}, or these files"


def load_method(
    *weights: str | Path,
    configs: Iterable[str | Path] = (),
    preset: str | None = None,
    flow: str | None = None,
    overrides: Iterable[str] = (),
    trust: Iterable[str] = (),
    device: str = "cpu",
) -> nn.Module:
    """A method with its weights, ready to `restore`; the embedded model where no weights are named.

    Args:
        weights: a folder, or weight files in any order (see `find_weights`).
        configs: YAML files, by default the card beside the weights, else the released configuration.
        preset: a file of configs/presets by name, merged last.
        flow: dis, raft or spynet in place of the configuration's estimator.
        overrides: `key.sub=value` words.
        trust: modules of your own whose classes a configuration may name; their code runs.

    Raises FileNotFoundError, CheckpointError, ConfigError or ValueError, each with one line that says what to do.
    """
    files = find_weights(*weights or (EMBEDDED,))
    chosen = {"configs": configs, "preset": preset, "flow": flow, "overrides": overrides}
    settings = read_settings(files, **chosen, trust=trust)
    return build_method(settings, files, device=device)


def find_weights(*words: str | Path) -> dict[str, Path]:
    """`{stage_one, stage_two[, card, folder, raft, spynet]: path}` from one folder, or from files by what they hold.

    Raises FileNotFoundError or CheckpointError naming what is missing.
    """
    paths = [Path(word) for word in words]
    if len(paths) == 1 and not paths[0].is_file():
        files = {slot: checkpoint.find(paths[0], name) for slot, name in STAGES.items()} | {"folder": paths[0]}
        return files | _card(paths[0])
    kinds, files = STAGES | FLOW_FILES, {}
    for path in paths:
        looks_like = checkpoint.recognise(checkpoint.read(path))
        slot = next((slot for slot, name in kinds.items() if looks_like.startswith(name)), None)
        if slot is None or slot in files:
            raise checkpoint.CheckpointError(f"{path}: looks like {looks_like or 'nothing known'}, expected {EXPECTED}")
        files[slot] = path
    if missing := [name for slot, name in STAGES.items() if slot not in files]:
        raise checkpoint.CheckpointError(f"got {', '.join(map(str, paths))} without {missing[0]}, expected {EXPECTED}")
    return files | _card(files["stage_one"].parent)


def _card(folder: Path) -> dict[str, Path]:
    return {"card": folder / CARD} if (folder / CARD).is_file() else {}


def read_settings(
    files: Mapping[str, Path],
    *,
    configs: Iterable[str | Path] = (),
    preset: str | None = None,
    flow: str | None = None,
    overrides: Iterable[str] = (),
    trust: Iterable[str] = (),
):
    """The configuration to restore with; arguments as for `load_method`."""
    paths = [*configs] or [files.get("card", RELEASED_CONFIG)]
    settings = config.load(*paths, trust=trust)
    for key in ("networks", "method", "flows", "flow"):
        if settings.get(key) is None:
            raise config.ConfigError(f"{', '.join(map(str, paths))}: no {key!r} key, expected a model's configuration")
    if preset is not None:
        settings = config.merge(settings, _preset(preset))
    if flow is not None and flow not in settings.flows:
        raise ValueError(f"got flow {flow!r}, expected one of {', '.join(settings.flows)}")
    if not isinstance(settings.flow, str):
        raise config.ConfigError(f"config.flow: got {settings.flow}, expected one of {', '.join(settings.flows)}")
    settings = config.override(settings, ([f"flow={flow}"] if flow else []) + list(overrides))
    for key in NEEDED:
        config.check_target(settings, key)
    return settings


def _preset(name: str) -> Path:
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"got preset {name!r}, expected one of {', '.join(known)}")
    return PRESETS / f"{name}.yaml"


def build_method(settings, files: Mapping[str, Path], *, device: str = "cpu") -> nn.Module:
    """The method of `settings` with the weights of `files`. Raises CheckpointError or ConfigError."""
    exact_float32()
    one = checkpoint.read(files["stage_one"])
    if "unet" not in checkpoint.slots_held(one, checkpoint.STAGE_ONE):  # before anything is missed in a wrong file
        looks_like = checkpoint.recognise(one) or "nothing known"
        what = f"{files['stage_one']}: looks like {looks_like}"
        raise checkpoint.CheckpointError(f"{what}, expected {checkpoint.STAGE_ONE.file}")
    own_flow = flow_file(settings, files)
    filled = {*checkpoint.slots_held(one, checkpoint.STAGE_ONE), "sequence_decoder"}
    networks = {}
    for name, node in settings.networks.items():
        # all its weights come from a file: the meta device spares their initialisation
        with torch.device("meta" if name in filled and name != "flow" else "cpu"):
            networks[name] = config.instantiate(node)
        if not isinstance(networks[name], nn.Module):
            raise config.ConfigError(f"config.networks.{name}: got no network, expected target and params")
    slots = {name: net for name, net in networks.items() if name in checkpoint.STAGE_ONE.slots and net.state_dict()}
    if own_flow is not None:
        constant = tuple(getattr(networks["flow"], "constant_buffers", ()))
        with named(f"the weights of flow {settings.flow}"):
            checkpoint.load(slots.pop("flow"), checkpoint.read(own_flow), tolerated_missing=constant)
    absent = [slot for slot in ("flow", "text") if slot not in slots]
    with named(files["stage_one"]):
        checkpoint.load_slots(slots, one, checkpoint.STAGE_ONE, absent=absent)
    two = {"sequence_autoencoder": networks["sequence_decoder"]}
    with named(files["stage_two"]):
        checkpoint.load_slots(two, checkpoint.read(files["stage_two"]), checkpoint.STAGE_TWO)
    return config.instantiate(settings.method, networks=networks).to(device)


@contextlib.contextmanager
def named(file: Path | str) -> Iterator[None]:
    """Errors of loading start with the file they are about."""
    try:
        yield
    except checkpoint.CheckpointError as error:
        line = str(error)
        raise checkpoint.CheckpointError(line if line.startswith(str(file)) else f"{file}: {line}") from error


def flow_file(settings, files: Mapping[str, Path]) -> Path | None:
    """The flow estimator's own weight file, None where it needs none or the stage-1 file holds them.

    Raises CheckpointError where it needs one that is not there.
    """
    name = FLOW_FILES.get(settings.flow)
    if name is None:
        return None
    if settings.flow in files:
        return files[settings.flow]
    if settings.flow == "raft":
        if "flow" in checkpoint.slots_held(checkpoint.read(files["stage_one"]), checkpoint.STAGE_ONE):
            return None
    folder = files.get("folder", files["stage_one"].parent)
    if "folder" in files:
        with contextlib.suppress(FileNotFoundError):
            return checkpoint.find(folder, name)
    todo = f"put {name}.pth into {folder}" if "folder" in files else f"name {name}.pth among the weights"
    raise checkpoint.CheckpointError(f"flow {settings.flow} needs {name}: {todo} (README), or choose --flow dis")
