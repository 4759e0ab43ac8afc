"""Build a method from weight files and YAML.

A YAML file with the keys `networks`, `method`, `weights` and `flags` describes a model. It is called `model.yaml` and
lies beside the weights, or in `configs/FAMILY/` for the released files of a family.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm import config
from ldm.engine.device import usable_device
from ldm.methods.contract import Method
from ldm.methods.words import AUTO, precision_on
from ldm.paths import product_folder
from ldm.printable import printable
from ldm.weights import checkpoint
from ldm.weights.blank import without_values
from ldm.weights.checkpoint import CheckpointError
from ldm.weights.files import WeightFile, find_all, match_files
from ldm.weights.fill import error_prefix, fill
from ldm.weights.safe import SUFFIXES

ROOT = product_folder()
EMBEDDED = ROOT / "assets" / "tiny"
CONFIGS = ROOT / "configs"
CARD = "model.yaml"  # describes a model: beside its weights, or in the folder of a family
FAMILY = "family.yaml"  # the weights and flags that all models of a family share
REQUIRED_KEYS = ("networks", "method", "weights")
MAPPINGS = (*REQUIRED_KEYS, "flags", "flows", "documents", "output")  # keys that hold a mapping
MERGES = Path("tokenizer", "merges.txt")  # of a tokenizer, in a folder of weights


@dataclass(frozen=True)
class Weights:
    """The weight files of a model and the YAML file that describes it.

    Args:
        files: paths by the names of the entries in `weights:`.
        card: path of the YAML file.
        folder: the folder that was searched; None if the files were given one by one.
        documents: settings -> the JSON files beside the weights that hold their values (`documents:` of the YAML file).
        opened: contents by name of the files that were read in order to recognise them.
    """

    files: Mapping[str, Path]
    card: Path
    folder: Path | None = None
    documents: Mapping[str, Path] = field(default_factory=dict)
    opened: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def read(self, name: str) -> Mapping[str, Tensor]:
        """Return the state dict of a file. Raises the errors of `checkpoint.read`."""
        return self.opened[name] if name in self.opened else checkpoint.read(self.files[name])


def load_method(
    *weights: str | Path,
    configs: Iterable[str | Path] = (),
    preset: str | None = None,
    overrides: Iterable[str] = (),
    trust: Iterable[str] = (),
    device: str = "cpu",
) -> Method:
    """Load a method and its weights; without weights, the model that comes with the package.

    Args:
        weights: a folder, or weight files in any order.
        configs: YAML files that describe the model. Default: `model.yaml` beside the weights, otherwise that of the
            family to which the files belong.
        preset: the name of a file in configs/FAMILY/presets; it is merged last.
        overrides: settings as `key.sub=value`.
        trust: names of modules whose classes a configuration may use as targets. Their code is executed.
        device: device of the networks.

    Raises FileNotFoundError, CheckpointError, ConfigError or ValueError. Each message is one line with a remedy.
    """
    found = find_weights(*weights or (EMBEDDED,), configs=configs)
    settings = read_settings(found, configs=configs, preset=preset, overrides=overrides, trust=trust)
    return build_method(settings, found, device=device)


# ---- families and settings


def family_cards() -> list[Path]:
    """Return the path of `model.yaml` of every family."""
    return sorted(CONFIGS.glob(f"*/{CARD}"))


def read_model(*paths: str | Path, trust: Iterable[str] = ()):
    """Merge the YAML files of a model over `family.yaml` of its family. Raises ConfigError for a missing key."""
    settings = config.load(*paths, trust=trust)
    family = settings.get("family")
    if family is not None:
        shared = CONFIGS / str(family) / FAMILY
        if not re.fullmatch(r"\w+", str(family)) or not shared.is_file():
            known = ", ".join(sorted(path.parent.name for path in CONFIGS.glob(f"*/{FAMILY}")))
            raise config.ConfigError(f"{paths[0]}: got family {family!r}, expected one of {known}")
        settings = config.merge_under(settings, shared)
    for key in REQUIRED_KEYS:
        if settings.get(key) is None:
            raise config.ConfigError(f"{', '.join(map(str, paths))}: no {key!r} key, expected a model's configuration")
    return _check_kinds(settings)


def _check_kinds(settings):
    """Return the settings unchanged. Raises ConfigError for a list or a word where a mapping is expected."""
    for key in MAPPINGS:
        value = settings.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise config.ConfigError(f"config.{key}: got {printable(value, 60)}, expected a mapping")
    return settings


def weight_files(settings) -> list[WeightFile]:
    """Return the entries of `weights:` of a model. Raises ValueError for an invalid entry."""
    entries = config.plain(settings["weights"])
    return [WeightFile.from_config(name, entry) for name, entry in entries.items()]


def used_files(settings) -> list[WeightFile]:
    """Return the entries of `weights:` that are used with the present values of the settings (`WeightFile.only`)."""

    def is_used(entry: WeightFile) -> bool:
        return all(config.select(settings, key) == value for key, value in entry.only.items())

    return [entry for entry in weight_files(settings) if is_used(entry)]


def read_settings(
    found: Weights,
    *,
    configs: Iterable[str | Path] = (),
    preset: str | None = None,
    overrides: Iterable[str] = (),
    trust: Iterable[str] = (),
):
    """Return the merged configuration of a model; see `load_method` for the arguments."""
    settings = read_model(*([*configs] or [found.card]), trust=trust)
    for key, path in found.documents.items():
        settings = config.with_document(settings, key, path)
    if preset is not None:
        settings = config.merge(settings, find_preset(settings, preset))
    return check_settings(config.override(settings, overrides))


def check_settings(settings):
    """Return the settings unchanged. Raises ConfigError for an unknown flow, a missing target, or no mapping."""
    _check_kinds(settings)
    if "flow" in settings:
        chosen, known = settings["flow"], list(settings.get("flows") or {})
        if not isinstance(chosen, str) or chosen not in known:
            raise config.ConfigError(f"config.flow: got {chosen}, expected one of {', '.join(known)}")
    for key in ("method", *(f"networks.{name}" for name in settings["networks"])):
        config.check_target(settings, key)
    return settings


def with_precision(settings, device: str):
    """Return the settings with a precision of "auto" replaced by what it means on the device, as records keep it."""
    params = settings["method"].get("params") or {}
    if params.get("precision") != AUTO:
        return settings
    return config.override(settings, [f"method.params.precision={precision_on(device, AUTO)}"])


def presets_of(settings) -> dict[str, Path]:
    """Return the presets of the model's family: name -> path, by name."""
    folder = CONFIGS / str(settings.get("family")) / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_preset(settings, name: str) -> Path:
    """Return the path of a preset of the model's family. Raises ValueError for an unknown name."""
    known = presets_of(settings)
    if name not in known:
        expected = f"one of {', '.join(known)}" if known else "none: this model has no presets"
        raise ValueError(f"got preset {name!r}, expected {expected}")
    return known[name]


# ---- weight files


def find_weights(*words: str | Path, configs: Iterable[str | Path] = ()) -> Weights:
    """Find the weight files in a folder, or recognise files that are given one by one by their contents.

    `configs` describe the model; by default, `model.yaml` beside the files or that of the family they belong to.
    Raises FileNotFoundError or CheckpointError with the name of the missing file.
    """
    paths, configs = [Path(word) for word in words], [Path(path) for path in configs]
    if len(paths) == 1 and not paths[0].is_file():
        return _find_in_folder(paths[0], configs)
    states = [(path, checkpoint.read(path)) for path in paths]
    beside = [path.parent / CARD for path in paths if (path.parent / CARD).is_file()]
    cards = [configs] if configs else [[card] for card in beside[:1] or family_cards()]
    card = max(cards, key=lambda files: _recognised(states, weight_files(read_model(*files))))
    files = match_files(states, weight_files(read_model(*card)))
    return Weights(files, card[0], opened={name: dict(states)[path] for name, path in files.items()})


def _find_in_folder(folder: Path, configs: list[Path]) -> Weights:
    if not folder.is_dir():
        what = "weight file" if folder.suffix in SUFFIXES else "folder"
        raise FileNotFoundError(f"there is no {what} {folder}, expected the weights of a model")
    own = folder / CARD
    if not configs:
        configs = [own if own.is_file() else _card_of(folder)]
    settings = read_model(*configs)
    return Weights(find_all(folder, weight_files(settings)), configs[0], folder, _documents(settings, folder))


def _card_of(folder: Path) -> Path:
    """Return `model.yaml` of the family with the most files in a folder. Raises FileNotFoundError if there are none."""
    entries = {card: weight_files(read_model(card)) for card in family_cards()}
    counts = {card: sum(entry.find(folder) is not None for entry in own) for card, own in entries.items()}
    card = max(counts, key=counts.__getitem__)
    if not counts[card]:
        families = "; ".join(f"{card.parent.name}: {own[0].files[0]} ..." for card, own in entries.items())
        raise FileNotFoundError(f"{folder} has no weights of a known family, expected the files of one ({families})")
    return card


def _documents(settings, folder: Path) -> dict[str, Path]:
    """Return setting -> JSON file in the folder that holds its value. Raises ConfigError for a path that leaves it."""
    documents = config.plain(settings.get("documents") or {})
    for key, name in documents.items():
        if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise config.ConfigError(f"config.documents.{key}: got {name!r}, expected a file in the folder of weights")
    return {key: folder / name for key, name in documents.items()}


def _recognised(states: Iterable[tuple[Path, Mapping]], entries: list[WeightFile]) -> int:
    """Count the files that match an entry."""
    return sum(any(entry.matches(state) for entry in entries) for _, state in states)


# ---- building


def build_method(settings, found: Weights, *, device: str = "cpu", unfilled: Collection[str] = ()) -> Method:
    """Build the method of `settings` with its networks; see `build_networks` for the arguments and errors."""
    networks = build_networks(settings, found, device=device, unfilled=unfilled)
    return config.instantiate(_with_merges(settings, found)["method"], networks=networks)


def build_networks(
    settings, found: Weights, *, device: str = "cpu", unfilled: Collection[str] = ()
) -> dict[str, nn.Module]:
    """Build the networks of `settings` on a device and load their weights: name -> network.

    Networks in `unfilled` keep random weights, and files that fill no others are not read. Every other file is read
    once. Raises CheckpointError, ConfigError or ValueError.
    """
    usable_device(device)
    entries = {entry.name: entry for entry in used_files(settings) if not entry.fills.keys() <= set(unfilled)}
    states = {name: found.read(name) for name in entries if name in found.files}
    for name, state in states.items():
        with error_prefix(found.files[name]):
            _check_file(entries[name], state)
    networks = {}
    for name, node in settings["networks"].items():
        filled = name not in unfilled and any(name in entry.fills for entry in entries.values())
        networks[name] = _build_network(name, node, filled=filled)
    to_fill = [name for name in networks if name not in unfilled and networks[name].state_dict()]
    sources = {name: _source_of(name, settings, found, states) for name in to_fill}
    for name, state in states.items():
        own = {network: networks[network] for network, source in sources.items() if source == name}
        with error_prefix(found.files[name]):
            if own:
                fill(own, state, entries[name], unused=entries[name].fills.keys() - own.keys())
    return {name: network.to(device) for name, network in networks.items()}


def _with_merges(settings, found: Weights):
    """Return the settings with `merges` as the path of a file beside the weights, or else of this package."""
    if settings.get("merges") is None:
        return settings
    own = found.folder and found.folder / MERGES
    path = own if own and own.is_file() else ROOT / settings.merges
    return config.override(settings, [config.Text("merges", str(path))])


def _build_network(name: str, node, *, filled: bool) -> nn.Module:
    """Build a network, without values if a file holds all its weights."""
    with without_values() if filled else torch.device("cpu"):
        network = config.instantiate(node)
    if not isinstance(network, nn.Module):
        raise config.ConfigError(f"config.networks.{name}: got no network, expected target and params")
    if filled and (not network.state_dict() or getattr(network, "constant_buffers", ())):
        return config.instantiate(node)  # it has values that are not in the file
    return network


def _source_of(network: str, settings, found: Weights, states: Mapping[str, Mapping]) -> str:
    """Return the name of the entry that fills a network. Raises CheckpointError if its file is missing."""
    entries = [entry for entry in used_files(settings) if network in entry.fills]
    exclusive = [entry for entry in entries if entry.only and not entry.spare]
    general = [entry for entry in entries if not entry.only]
    spare = [entry for entry in entries if entry.spare]
    there = [entry for entry in general if entry.name in states]
    holding = [entry for entry in there if network in checkpoint.slots_present(states[entry.name], entry.layout)]
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
    """Raise CheckpointError for a file of another kind, so that the message does not list all its entries."""
    if not checkpoint.slots_present(state, entry.layout):
        raise CheckpointError(f"looks like {checkpoint.recognise(state) or 'nothing known'}, expected {entry.name}")
