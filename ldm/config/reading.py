"""Read, merge, override and write configuration files.

Files are data: a file is refused if it exceeds the limits below, if its references expand beyond them, if it uses a
resolver such as `${oc.env:NAME}`, or if it includes files from other folders.
"""

import contextlib
import copy
import functools
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config.errors import ConfigError, brief, first_line, nearest
from ldm.config.overrides import Text, apply_overrides
from ldm.config.references import check_references, names_referenced
from ldm.files import write_atomically
from ldm.paths import product_folder

PROJECT = product_folder()
SHIPPED = (PROJECT / "configs", PROJECT / "assets")  # any file may include files of these folders
MOST_BYTES, MOST_FILES, MOST_VALUES, DEEPEST = 1 << 19, 32, 50_000, 32
LARGEST = 1 << 63  # whole numbers
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C where PyYAML was built with it

# The top-level keys that the commands read, and the variables of the shipped files, which remain in the configuration
# of a run even if an override has replaced the values that refer to them. Interpolations must name all other keys.
KEYS = frozenset(
    """
    ablation accumulate autoencoder_weights batch_size benchmark captions cfw_weights channels_last checkpointing
    checkpoints clips data dataroot_gt dataroot_lq dataroot_lt dataroot_sp defaults degradation documents ema export
    export_folder family flags flow flows folder gt_size init latents learning_rate lightning lpips_weights merges
    meta method model networks num_frames num_workers output perceptual perceptuals photographs pictures plan
    scale_factor scheduler sd_weights seed sources steps student teacher text texts title train_set train_sets
    upscaler_weights vae vaes vgg_weights weights
    """.split()
)
TRUST = "trust "  # begins the flags of a configuration that hold the modules its user trusts


def load(*paths: str | Path, overrides: Iterable[str | Text] = (), trust: Iterable[str] = ()) -> DictConfig:
    """Merge YAML files from left to right, and apply overrides.

    The files in `include: [other.yaml, ...]` at the top level of a file are merged before it. They must be in the
    folder of the first file, below it, or among those of the project (also by their path in `configs/`). Interpolations
    such as `${networks.unet}` are kept until `instantiate`, so that each of them builds an object of its own.

    Args:
        paths: YAML files.
        overrides: `key.sub=value` for an existing key, `+key.sub=value` for a new one, `Text` for values as they are.
        trust: modules of the user whose targets `instantiate` may build.

    Raises FileNotFoundError for a missing file; ConfigError for invalid files or overrides.
    """
    contents = [_File(Path(path)).content() for path in paths]
    merged = _merge(*contents, failure=f"{', '.join(map(str, paths))} do not merge")
    return _check_keys(_with_overrides(merged, overrides, trust), paths)


def merge(config: DictConfig, path: str | Path) -> DictConfig:
    """Return `config` with a YAML file merged over it. Raises the errors of `load`."""
    merged = _merge(config, _File(Path(path)).content(), failure=f"{path} does not merge with the configuration")
    return _check_keys(_with_overrides(merged, (), trusted(config)), [path])


def merge_under(config: DictConfig, path: str | Path) -> DictConfig:
    """Return `config` merged over a YAML file. Raises the errors of `load`."""
    merged = _merge(_File(Path(path)).content(), config, failure=f"the configuration does not merge with {path}")
    return _check_keys(_with_overrides(merged, (), trusted(config)), [path])


def override(config: DictConfig, words: Iterable[str | Text]) -> DictConfig:
    """Return a copy of `config` with overrides applied; see `load`. Raises ConfigError."""
    words = tuple(words)
    return _from_tree(OmegaConf.to_container(config), words, trusted(config)) if words else copy.deepcopy(config)


def with_document(config: DictConfig, key: str, path: str | Path) -> DictConfig:
    """Return a copy of `config` in which a dotted key has the content of a JSON file.

    Raises FileNotFoundError; ConfigError for a file that is not a mapping, exceeds the limits or contains references,
    and for a key whose parent does not exist.
    """
    tree = OmegaConf.to_container(config)
    parent, _, name = key.rpartition(".")
    place = tree
    for part in parent.split(".") if parent else ():
        place = place.get(part) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise ConfigError(f"config.documents: got {brief(key)}, expected a key below one that exists")
    place[name] = _document(Path(path))
    return _from_tree(tree, (), trusted(config))


def _document(path: Path) -> dict:
    """Return the mapping in a JSON file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, which describes the weights beside it")
    data = _limited(path)
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: got {type(found).__name__}, expected a mapping")
    _check_document(found, path, DEEPEST)
    with _error_prefix(path):
        _check_values(found)
    return found


def _check_document(node: Any, path: Path, levels: int) -> None:
    """Raise ConfigError for deep nesting, references and targets."""
    if not levels:
        raise ConfigError(f"{path}: nested deeper than {DEEPEST} levels")
    if isinstance(node, dict):
        if "target" in node:
            raise ConfigError(f"{path}: holds a target, expected plain values")
        node = [*node, *node.values()]
    if isinstance(node, list):
        for child in node:
            _check_document(child, path, levels - 1)
    elif isinstance(node, str) and "${" in node:
        raise ConfigError(f"{path}: holds the reference {brief(node)}, expected plain values")


def select(config: DictConfig, key: str) -> Any:
    """Return the value at a dotted key; None if there is none."""
    return OmegaConf.select(config, key)


def plain(config: Any) -> dict:
    """Return a configuration as dictionaries, lists, numbers and strings, with references resolved.

    Raises ConfigError for a reference to a key that is missing.
    """
    if not OmegaConf.is_config(config):
        return config
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config.{error.full_key}: {first_line(error)}; set it, or correct the reference") from None


def save(config: Any, path: str | Path) -> None:
    """Write a configuration as YAML, atomically; interpolations are kept."""
    write_atomically(Path(path), to_yaml(config).encode())


def to_yaml(config: Any) -> str:
    """Return a configuration as YAML; interpolations are kept."""
    return OmegaConf.to_yaml(OmegaConf.create(config))


def part_of(config: Any, keys: Iterable[str]) -> dict:
    """Return the given top-level keys of a configuration, and those that their interpolations refer to."""
    tree, wanted = OmegaConf.to_container(config), [key for key in keys if key in config]
    for key in wanted:  # grows while it is read
        wanted += [name for name in names_referenced({key: tree[key]}) if name in tree and name not in wanted]
    return {key: config[key] for key in tree if key in wanted}


def trusted(config: Any) -> tuple[str, ...]:
    """Return the trusted modules with which a configuration, or the one that it is a part of, was loaded."""
    flags = config._get_root()._metadata.flags if OmegaConf.is_config(config) else None
    return tuple(flag.removeprefix(TRUST) for flag in flags or () if flag.startswith(TRUST))


def _merge(*configs: DictConfig, failure: str) -> DictConfig:
    """Merge configurations, later ones over earlier ones. Raises ConfigError that begins with `failure`."""
    try:
        return OmegaConf.merge(*configs)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list over a mapping
        raise ConfigError(f"{failure}: {first_line(error)}") from error


def _with_overrides(config: DictConfig, words: Iterable[str | Text], trust: Iterable[str | Text]) -> DictConfig:
    """Return a merged configuration with overrides applied; a copy only if there are any."""
    tree, words, trust = OmegaConf.to_container(config), tuple(words), tuple(trust)
    if words or trust:
        return _from_tree(tree, words, trust)
    check_references(tree)
    return config


def _from_tree(tree: dict, words: Iterable[str | Text], trust: Iterable[str | Text]) -> DictConfig:
    """Return a configuration of `tree` with overrides applied."""
    apply_overrides(tree, words, tuple(trust))
    check_references(tree)
    return OmegaConf.create(tree, flags={f"{TRUST}{module}": True for module in trust})


def _check_keys(config: DictConfig, paths: Iterable[str | Path]) -> DictConfig:
    """Return the configuration. Raises ConfigError for a top-level key that is neither in KEYS nor referred to."""
    used = KEYS | names_referenced(OmegaConf.to_container(config))
    if unknown := [key for key in config if key not in used]:
        where = ", ".join(map(str, paths))
        raise ConfigError(f"{where}: unknown key {brief(unknown[0])}{nearest(unknown[0], used)}")
    return config


class _File:
    """A file named by the user, with the files that it includes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders = [folder.resolve() for folder in (path.parent, *SHIPPED)]
        self.read = 0

    def content(self) -> DictConfig:
        """Return the merged mapping, which must not be changed."""
        return self._content(self.path, ())

    def _content(self, path: Path, chain: tuple[Path, ...]) -> DictConfig:
        """Return a file merged over the files that it includes; `chain` are the files that include it."""
        if path.resolve() in [p.resolve() for p in chain]:
            raise ConfigError(f"{chain[0]}: includes form a circle: {' -> '.join(map(str, (*chain, path)))}")
        if not path.is_file():
            by = f" (included by {chain[-1]})" if chain else ""
            raise FileNotFoundError(f"there is no configuration file {path}{by}")
        self.read += 1
        if self.read > MOST_FILES:
            raise ConfigError(f"{self.path}: includes more than {MOST_FILES} files")
        own = _parsed(path)
        if "include" not in own:
            return own
        includes = own.get("include") or []
        includes = [includes] if isinstance(includes, str) else includes
        if not (OmegaConf.is_list(includes) or isinstance(includes, list)) or not all(
            isinstance(name, str) for name in includes
        ):
            raise ConfigError(f"{path}: include must be a list of file names, got {brief(plain(includes))}")
        below = [self._content(self._place(name, path), (*chain, path)) for name in includes]
        merged = _merge(*below, own, failure=f"{path} does not merge with what it includes")
        del merged["include"]
        return merged

    def _place(self, name: str, by: Path) -> Path:
        """Return the path of an included file: beside the including file, or else in `configs/`."""
        beside = by.parent / name
        for place in (beside, SHIPPED[0] / name):
            if place.is_file() or place is beside and not (SHIPPED[0] / name).is_file():
                break
        if any(place.resolve().is_relative_to(folder) for folder in self.folders):
            return place
        where = f"{self.path.parent} or the shipped configs"
        raise ConfigError(f"{by}: include {brief(name)} is not below {where}; name that file on the command line, too")


def _parsed(path: Path) -> DictConfig:
    """Return the mapping in a file, which must not be changed."""
    data = _limited(path)
    try:
        with _error_prefix(path):
            return _parsed_text(data.decode("utf-8"))
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{path}: nested deeper than {DEEPEST} levels") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or first_line(error)}") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not a YAML mapping: {first_line(error)}") from error


def _limited(path: Path) -> bytes:
    """Return the content of a file. Raises ConfigError for more than MOST_BYTES."""
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path}: more than {MOST_BYTES} bytes, expected a configuration")
    return data


@contextlib.contextmanager
def _error_prefix(path: Path) -> Iterator[None]:
    """Begin the message of a ConfigError with the path."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error.__cause__


@functools.lru_cache(maxsize=64)
def _parsed_text(text: str) -> DictConfig:
    """Return the mapping in a text, which must not be changed. Cached: commands read the same files several times."""
    _check_depth(text)
    root = yaml.compose(text, Loader=Loader)
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError("not a YAML mapping: expected `key: value` lines at the top level")
    _check_size(root)
    loaded = OmegaConf.load(io.StringIO(text))
    _check_values(OmegaConf.to_container(loaded))
    return loaded


def _check_depth(text: str) -> None:
    """Raise ConfigError for deep nesting, before parsing, which takes quadratic time."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST + 1:
            raise ConfigError(f"nested deeper than {DEEPEST} levels")


def _check_size(root: yaml.Node) -> None:
    """Raise ConfigError for a file whose expanded anchors exceed the limits of number or depth."""
    known: dict[int, tuple[int, int]] = {}

    def measured(node: yaml.Node, above: tuple[int, ...]) -> tuple[int, int]:
        """Return (values, levels) of a node."""
        if id(node) in above:
            raise ConfigError("an anchor holds itself")
        if id(node) not in known:
            pairs = node.value if isinstance(node, yaml.MappingNode) else ()
            children = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in pairs for part in pair]
            sizes = [measured(child, (*above, id(node))) for child in children]
            known[id(node)] = 1 + sum(n for n, _ in sizes), 1 + max((level for _, level in sizes), default=0)
        return known[id(node)]

    values, levels = measured(root, ())
    if levels > DEEPEST + 1:
        raise ConfigError(f"nested deeper than {DEEPEST} levels")
    if values > MOST_VALUES:
        raise ConfigError(f"more than {MOST_VALUES} values, expected a configuration")


def _check_values(node: Any) -> None:
    """Raise ConfigError for integers of more than 64 bits."""
    if isinstance(node, Mapping):
        node = [*node, *node.values()]
    if isinstance(node, list):
        for child in node:
            _check_values(child)
    elif isinstance(node, int) and abs(node) >= LARGEST:
        raise ConfigError(f"holds a whole number of {node.bit_length()} bits, expected at most 64")
