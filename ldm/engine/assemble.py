"""From weight files and YAML to a method that restores frames.

A model is described by a YAML file with the keys `networks`, `method`, `weights` and `flags`: beside its weights as
`model.yaml`, or as `configs/FAMILY/model.yaml` for the released files of a family.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm import config
from ldm.engine.device import exact_float32
from ldm.methods.contract import Method
from ldm.paths import product_folder
from ldm.weights import checkpoint
from ldm.weights.checkpoint import CheckpointError
from ldm.weights.files import WeightFile, find_in, sort_out
from ldm.weights.fill import fill, naming

ROOT = product_folder()
EMBEDDED = ROOT / "assets" / "tiny"
CONFIGS = ROOT / "configs"
CARD = "model.yaml"  # describes a model: beside its weights, or in the folder of a family
FAMILY = "family.yaml"  # the weights and flags that all models of a family share
NEEDED = ("networks", "method", "weights")


@dataclass(frozen=True)
class Weights:
    """Weight files that were found, and the YAML that describes their model.

    Args:
        files: path by the name of the entry in `weights:`.
        card: the YAML.
        folder: where they were looked for; None: they were named one by one.
        opened: contents by name, of files that had to be read to be recognised.
    """

    files: Mapping[str, Path]
    card: Path
    folder: Path | None = None
    opened: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def read(self, name: str) -> Mapping[str, Tensor]:
        """The contents of a file. Raises as `checkpoint.read`."""
        return self.opened[name] if name in self.opened else checkpoint.read(self.files[name])


def load_method(
    *weights: str | Path,
    configs: Iterable[str | Path] = (),
    preset: str | None = None,
    overrides: Iterable[str] = (),
    trust: Iterable[str] = (),
    device: str = "cpu",
) -> Method:
    """A method with its weights, ready to restore frames; the embedded model where no weights are named.

    Args:
        weights: a folder, or weight files in any order.
        configs: YAML files that describe the model; default: `model.yaml` beside the weights, else that of the family
            the files belong to.
        preset: the name of a file in configs/FAMILY/presets, merged last.
        overrides: `key.sub=value` words.
        trust: modules of your own whose classes a configuration may name; their code runs.
        device: where the networks go.

    Raises FileNotFoundError, CheckpointError, ConfigError or ValueError, each with one line that says what to do.
    """
    found = find_weights(*weights or (EMBEDDED,), configs=configs)
    settings = read_settings(found, configs=configs, preset=preset, overrides=overrides, trust=trust)
    return build_method(settings, found, device=device)


# ---- families and settings


def family_cards() -> list[Path]:
    """The `model.yaml` of every family."""
    return sorted(CONFIGS.glob(f"*/{CARD}"))


def read_model(*paths: str | Path, trust: Iterable[str] = ()):
    """The merged YAML files of a model, over what its family shares. Raises ConfigError for a missing key."""
    settings = config.load(*paths, trust=trust)
    family = settings.get("family")
    if family is not None:
        shared = CONFIGS / str(family) / FAMILY
        if not re.fullmatch(r"\w+", str(family)) or not shared.is_file():
            known = ", ".join(sorted(path.parent.name for path in CONFIGS.glob(f"*/{FAMILY}")))
            raise config.ConfigError(f"{paths[0]}: got family {family!r}, expected one of {known}")
        settings = config.load(shared, *paths, trust=trust)
    for key in NEEDED:
        if settings.get(key) is None:
            raise config.ConfigError(f"{', '.join(map(str, paths))}: no {key!r} key, expected a model's configuration")
    return settings


def weight_files(settings) -> list[WeightFile]:
    """The entries `weights:` of a model. Raises ValueError that names what is wrong with one."""
    entries = config.plain(settings["weights"])
    return [WeightFile.from_config(name, entry) for name, entry in entries.items()]


def read_settings(
    found: Weights,
    *,
    configs: Iterable[str | Path] = (),
    preset: str | None = None,
    overrides: Iterable[str] = (),
    trust: Iterable[str] = (),
):
    """The configuration to restore with; arguments as for `load_method`."""
    settings = read_model(*([*configs] or [found.card]), trust=trust)
    if preset is not None:
        settings = config.merge(settings, find_preset(settings, preset))
    return check_settings(config.override(settings, overrides))


def check_settings(settings):
    """The settings. Raises ConfigError for an unknown flow, or a network or method without a target."""
    if "flow" in settings:
        chosen, known = settings["flow"], list(settings.get("flows") or {})
        if not isinstance(chosen, str) or chosen not in known:
            raise config.ConfigError(f"config.flow: got {chosen}, expected one of {', '.join(known)}")
    for key in ("method", *(f"networks.{name}" for name in settings["networks"])):
        config.check_target(settings, key)
    return settings


def find_preset(settings, name: str) -> Path:
    """The file of a preset of the model's family. Raises ValueError that lists the known ones."""
    folder = CONFIGS / str(settings.get("family")) / "presets"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        expected = f"one of {', '.join(known)}" if known else "none: this model has no presets"
        raise ValueError(f"got preset {name!r}, expected {expected}")
    return folder / f"{name}.yaml"


# ---- weight files


def find_weights(*words: str | Path, configs: Iterable[str | Path] = ()) -> Weights:
    """Weight files in one folder, or given one by one and recognised by what they hold.

    The model is described by `configs`, else by `model.yaml` beside the files, else by the family they belong to.
    Raises FileNotFoundError or CheckpointError naming what is missing.
    """
    paths, configs = [Path(word) for word in words], [Path(path) for path in configs]
    if len(paths) == 1 and not paths[0].is_file():
        return _find_in_folder(paths[0], configs)
    states = [(path, checkpoint.read(path)) for path in paths]
    beside = [path.parent / CARD for path in paths if (path.parent / CARD).is_file()]
    cards = [configs] if configs else [[card] for card in beside[:1] or family_cards()]
    card = max(cards, key=lambda files: _recognised(states, weight_files(read_model(*files))))
    files = sort_out(states, weight_files(read_model(*card)))
    return Weights(files, card[0], opened={name: dict(states)[path] for name, path in files.items()})


def _find_in_folder(folder: Path, configs: list[Path]) -> Weights:
    own = folder / CARD
    cards = [configs] if configs else [[own]] if own.is_file() else [[card] for card in family_cards()]
    if folder.is_dir():
        cards.sort(key=lambda files: -sum(e.find(folder) is not None for e in weight_files(read_model(*files))))
    return Weights(find_in(folder, weight_files(read_model(*cards[0]))), cards[0][0], folder)


def _recognised(states: Iterable[tuple[Path, Mapping]], entries: list[WeightFile]) -> int:
    """How many of the files are entries."""
    return sum(any(entry.fits(state) for entry in entries) for _, state in states)


# ---- building


def build_method(
    settings, found: Weights, *, device: str = "cpu", method: bool = True, unfilled: Collection[str] = ()
) -> Any:
    """The method of `settings` with the weights that were found; with `method=False` the filled networks by name.

    Networks that `unfilled` names keep random weights; files that fill no others are not read. Every other file is read
    once. Raises CheckpointError, ConfigError, or ValueError.
    """
    exact_float32()
    entries = {entry.name: entry for entry in weight_files(settings) if entry.used_with(settings)}
    entries = {name: entry for name, entry in entries.items() if not entry.fills.keys() <= set(unfilled)}
    states = {name: found.read(name) for name in entries if name in found.files}
    for name, state in states.items():
        with naming(found.files[name]):
            _check_file(entries[name], state)
    networks = {}
    for name, node in settings["networks"].items():
        filled = name not in unfilled and any(name in entry.fills for entry in entries.values())
        networks[name] = _build_network(name, node, filled=filled)
    to_fill = [name for name in networks if name not in unfilled and networks[name].state_dict()]
    sources = {name: _source_of(name, settings, found, states) for name in to_fill}
    for name, state in states.items():
        own = {network: networks[network] for network, source in sources.items() if source == name}
        with naming(found.files[name]):
            if own:
                fill(own, state, entries[name], unused=entries[name].fills.keys() - own.keys())
    networks = {name: network.to(device) for name, network in networks.items()}
    return config.instantiate(settings["method"], networks=networks) if method else networks


def _build_network(name: str, node, *, filled: bool) -> nn.Module:
    """A network; on the meta device where all its weights come from a file, which spares their initialisation."""
    with torch.device("meta" if filled else "cpu"):
        network = config.instantiate(node)
    if not isinstance(network, nn.Module):
        raise config.ConfigError(f"config.networks.{name}: got no network, expected target and params")
    if filled and (not network.state_dict() or getattr(network, "constant_buffers", ())):
        return config.instantiate(node)  # it has values that no file holds
    return network


def _source_of(network: str, settings, found: Weights, states: Mapping[str, Mapping]) -> str:
    """The entry that fills a network. Raises CheckpointError where its file is missing."""
    entries = [entry for entry in weight_files(settings) if network in entry.fills and entry.used_with(settings)]
    exclusive = [entry for entry in entries if entry.only and not entry.spare]
    general = [entry for entry in entries if not entry.only]
    spare = [entry for entry in entries if entry.spare]
    there = [entry for entry in general if entry.name in states]
    holding = [entry for entry in there if network in checkpoint.slots_held(states[entry.name], entry.layout)]
    for entry in exclusive or [*holding, *spare, *(general if not spare else [])]:
        if entry.name in states:
            return entry.name
    if not entries:
        raise CheckpointError(f"config.networks.{network}: no entry of config.weights fills it; add one")
    missing = (exclusive or spare or general)[0]
    todo = f"put {missing.name} into {found.folder}" if found.folder else f"name {missing.name} among the weights"
    other = "".join(f", or choose another {key} ({key}=...)" for key in missing.only)
    chosen = "".join(f" with {key}={value}" for key, value in missing.only.items())
    raise CheckpointError(f"{network}{chosen} needs {missing.name}: {todo} (README){other}")


def _check_file(entry: WeightFile, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for a file of another kind, before its entries are listed as missing."""
    if not checkpoint.slots_held(state, entry.layout):
        raise CheckpointError(f"looks like {checkpoint.recognise(state) or 'nothing known'}, expected {entry.name}")
