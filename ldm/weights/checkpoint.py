"""Read, find, load and write weight files. Reading runs no code from a file; loading is strict."""

import hashlib
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.files import atomic_file
from ldm.printable import printable
from ldm.weights.safe import MAX_NAME, SUFFIXES, CheckpointError, check_sizes, check_tensor, read_content

MAX_SHOWN = 3  # maximum number of names per list in a message
# Keys under which trainers store weights; the first one present is used.
CONTAINERS = ("state_dict", "params_ema", "model", "params")
MAX_DEPTH = 4  # maximum depth of nested containers
AVERAGES = "model_ema."
COMPILED = "_orig_mod"  # part of names added by torch.compile
CHUNK = 1 << 22  # values checked at a time
log = logging.getLogger(__name__)


class Layout(NamedTuple):
    """The assignment of the entries of a file to networks.

    Args:
        file: name of the published file, for messages.
        slots: name of a slot -> {prefix in the file: prefix in the network}.
        ignored: shell patterns of names that belong to no network.
    """

    file: str
    slots: Mapping[str, Mapping[str, str]]
    ignored: tuple[str, ...]


# The schedule is computed in float64 from the configuration (diffusion/schedule.py); these float32 copies are ignored.
SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)

# (name, substrings that some entry must contain, substrings that no entry may contain); the first match is used.
KNOWN_FILES = (
    ("mgldvsr_unet.ckpt", ("structcond_stage_model.", "middle_block.1.temporal_conv."), ()),
    ("stablesr_000117.ckpt", ("structcond_stage_model.", "model.diffusion_model.input_blocks."), ("temporal_conv.",)),
    ("v2-1_512-ema-pruned.ckpt", ("model.diffusion_model.", "first_stage_model."), ("structcond_stage_model.",)),
    ("video_vae_cfw.ckpt", ("decoder.fusion_layer_", "decoder.temporal_mixing."), ()),
    ("vqgan_cfw_00011.ckpt", ("decoder.fusion_layer_",), ("temporal_mixing.",)),
    ("raft-things.pth", ("fnet.", "cnet.", "update_block."), ("structcond_stage_model.",)),
    ("spynet_sintel_final-3d2a1287.pth", ("basic_module.0.basic_module.",), ("decoder.",)),
    ("open_clip_pytorch_model.bin", ("transformer.resblocks.", "token_embedding."), ("model.diffusion_model.",)),
    ("the weights of a condition encoder", ("fea_tran.", "input_blocks."), ("structcond_stage_model.",)),
    ("the weights of a denoising U-Net", ("input_blocks.", "output_blocks."), ("first_stage_model.",)),
    ("the weights of an image autoencoder", ("encoder.down.", "decoder.up.", "quant_conv."), ("fusion_layer_",)),
)


def read(path: str | Path) -> dict[str, Tensor]:
    """Read the flat state dict of a weight file to the CPU, without prefixes of DataParallel and `torch.compile`.

    The file is safetensors or a pickle of tensors. The tensors may be nested under the keys `CONTAINERS`; if there are
    several, the first is used and the choice is logged. Moving averages of Stable Diffusion (`model_ema.`) are left
    out. No code from the file is executed: the few classes in released checkpoints of Lightning 1.4 are replaced by
    inert stand-ins, and files with other classes are refused.

    Raises FileNotFoundError; CheckpointError for a file that is empty, damaged, sharded, not a weight file, or whose
    entries claim more values than it holds.
    """
    path = Path(path)
    content = _contained(read_content(path), path)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: got {type(content).__name__} without entries, expected names and tensors")
    for name, value in content.items():
        check_tensor(name, value, path)
    check_sizes(content, path)
    if averages := [name for name in content if name.startswith(AVERAGES)]:
        log.info("%s: %d averaged weights (%s...) are left out", printable(path), len(averages), AVERAGES)
    state = {_plain_name(name): value.detach() for name, value in content.items() if not name.startswith(AVERAGES)}
    if len(state) + len(averages) < len(content):
        raise CheckpointError(f"{path}: entries differ only by {COMPILED}; it is not clear which to take")
    if not state:
        raise CheckpointError(
            f"{path}: holds only averaged weights ({AVERAGES}...), expected those of the network, too"
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _contained(content: Any, path: Path) -> Any:
    """Unwrap the containers of a checkpoint and return its names and tensors."""
    for _ in range(MAX_DEPTH):
        found = [key for key in CONTAINERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
        if not found:
            break
        if len(found) > 1:
            log.info("%s: takes %s, not %s", printable(path), found[0], ", ".join(found[1:]))
        content = content[found[0]]
    return content


def _plain_name(name: str) -> str:
    """Remove the parts of a name that `torch.compile` added."""
    return ".".join(part for part in name.split(".") if part != COMPILED) if COMPILED in name else name


def load(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    tolerated_missing: Iterable[str] = (),
    ignored: Iterable[str] = (),
) -> None:
    """Load `state` into `module` strictly; the module is unchanged unless all entries fit.

    `tolerated_missing` are shell patterns of entries that keep their values if the file lacks them; `ignored` are shell
    patterns of entries of the file that are not loaded. Values are converted to the dtype of the network; a network on
    the meta device takes over the tensors of the file.

    Raises CheckpointError with the missing, unexpected, mis-shaped and mis-typed entries and the likely cause, or with
    the name of an entry that has NaN or infinite values.
    """
    slots = {"network": {"": ""}}
    layout = Layout(file=recognise(module.state_dict()) or "", slots=slots, ignored=tuple(ignored))
    load_slots({"network": module}, state, layout, tolerated_missing=tolerated_missing)


def load_slots(
    modules: Mapping[str, nn.Module | None],
    state: Mapping[str, Tensor],
    layout: Layout,
    *,
    absent: Iterable[str] = (),
    tolerated_missing: Iterable[str] = (),
) -> None:
    """Load the slots of a file into networks, as strictly as `load`; no network changes unless all entries fit.

    A slot that is missing in `modules`, or None there, must have no entries in the file, unless it is in `absent`.
    `tolerated_missing` are shell patterns of names in the file.

    Raises ValueError for an unknown slot; CheckpointError as `load`.
    """
    if unknown := sorted({*modules, *absent} - {*layout.slots}):
        raise ValueError(f"got slot {unknown[0]!r}, expected some of {', '.join(layout.slots)}")
    given = {slot: module for slot, module in modules.items() if module is not None}
    wanted, report = {}, _Report([], [], [], [])
    taken = {name for name in state if any(fnmatchcase(name, pattern) for pattern in layout.ignored)}
    for slot, prefixes in layout.slots.items():
        if slot in given:
            own = given[slot].state_dict()
            names = {_name_in_file(name, prefixes): name for name in own}
            report.compare({outside: own[inside] for outside, inside in names.items()}, state, tolerated_missing)
            wanted[slot] = {inside: outside for outside, inside in names.items() if outside in state}
            taken |= names.keys()
        elif slot in absent:
            taken |= {name for name in state if name.startswith(tuple(prefixes))}
    report.unexpected.extend(name for name in state if name not in taken)
    if any(report):
        raise CheckpointError(report.line(layout, state, given))
    for slot, names in wanted.items():
        _require_values(given[slot], names)
        for name in names.values():
            require_finite(name, state[name])
    for slot, names in wanted.items():
        _assign(given[slot], {inside: state[outside] for inside, outside in names.items()})


def _name_in_file(own: str, prefixes: Mapping[str, str]) -> str:
    """Return the name in the file of an entry of a network."""
    fits = ((outside, inside) for outside, inside in prefixes.items() if own.startswith(inside))
    outside, inside = next(fits, ("", ""))
    return outside + own.removeprefix(inside)


def _require_values(module: nn.Module, given: Iterable[str]) -> None:
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_meta and name not in given:
            raise CheckpointError(f"{name} is on the meta device and not in the file; build the network on the CPU")


def _assign(module: nn.Module, values: dict[str, Tensor]) -> None:
    own = module.state_dict()
    values = {name: value.to(own[name].dtype) for name, value in values.items()}
    module.load_state_dict(own | values, assign=any(value.is_meta for value in own.values()))


def slots_present(state: Mapping[str, Tensor], layout: Layout) -> list[str]:
    """Return the slots of a layout for which a file has entries."""
    return [slot for slot, prefixes in layout.slots.items() if any(n.startswith(tuple(prefixes)) for n in state)]


class _Report(NamedTuple):
    """Entries that do not fit, by their names in the file."""

    missing: list[str]
    unexpected: list[str]
    mis_shaped: list[str]
    mis_typed: list[str]

    def compare(self, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], tolerated: Iterable[str]) -> None:
        tolerated = tuple(tolerated)
        for name, value in wanted.items():
            if name not in state:
                if not any(fnmatchcase(name, pattern) for pattern in tolerated):
                    self.missing.append(name)
            elif state[name].shape != value.shape:
                self.mis_shaped.append(f"{name} (file {tuple(state[name].shape)}, network {tuple(value.shape)})")
            elif state[name].is_floating_point() != value.is_floating_point():
                self.mis_typed.append(f"{name} (file {_dtype(state[name])}, network {_dtype(value)})")

    def line(self, layout: Layout, state: Mapping[str, Tensor], given: Mapping[str, nn.Module]) -> str:
        found = {kind.replace("_", "-"): names for kind, names in self._asdict().items() if names}
        parts = [f"{len(names)} {kind}: {first_names(names)}" for kind, names in found.items()]
        return f"the weights do not fit: {'; '.join(parts)}. {self._cause(layout, state, given)}"

    def _cause(self, layout: Layout, state: Mapping[str, Tensor], given: Mapping[str, nn.Module]) -> str:
        kind = recognise(state)
        if kind and layout.file and not kind.startswith(layout.file):
            return f"This looks like {kind}, expected {layout.file}"
        if self.mis_typed:
            return "Quantised weights cannot be used; take a file of floating-point numbers"
        if self.mis_shaped and not self.missing and not self.unexpected:
            return "Same names, other widths: wrong configuration for these weights"
        unbuilt = [s for s in slots_present(state, layout) if s not in given]
        if unbuilt and not self.missing and not self.mis_shaped:
            return f"The file also holds {', '.join(unbuilt)}, which was not built: name it as absent to leave it out"
        unfilled = [s for s in given if s not in slots_present(state, layout)]
        if unfilled:
            return f"The file holds nothing for {', '.join(unfilled)}"
        if len(self.missing) + len(self.unexpected) >= len(state):
            return "No name agrees: another network's weights, or names under another prefix"
        return "Likely another version of the network, or a configuration with other levels or blocks"


def first_names(names: Sequence[str]) -> str:
    """Return the first `MAX_SHOWN` names of a list, separated by commas, for a message."""
    text = ", ".join(printable(name, MAX_NAME) for name in names[:MAX_SHOWN])
    return text + (", ..." if len(names) > MAX_SHOWN else "")


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def recognise(names: Iterable[str]) -> str:
    """Return the name of the published file with such entries; '' if none matches."""
    text = "\n".join(f"\n{name}" for name in names)
    for file, having, lacking in KNOWN_FILES:
        if all(part in text for part in having) and not any(part in text for part in lacking):
            return file
    return ""


def require_finite(name: str, value: Tensor) -> None:
    """Raise CheckpointError if the entry `name` has NaN or infinite values."""
    if not value.is_floating_point() or value.is_meta:
        return
    if all(math.isfinite(chunk.sum(dtype=torch.float64).item()) for chunk in value.reshape(-1).split(CHUNK)):
        return
    bad = sum(int((~chunk.isfinite()).sum()) for chunk in value.reshape(-1).split(CHUNK))
    if bad:
        what = f"{bad} NaN or infinite values of {value.numel()}"
        raise CheckpointError(f"{printable(name, MAX_NAME)} holds {what}; the file is damaged")


def find(folder: str | Path, names: Iterable[str]) -> Path:
    """Return the first weight file in `folder` or its subfolder `flownets` that has one of `names`.

    A name without a known suffix is tried with all suffixes, `.safetensors` first; the case of letters is ignored.
    Raises FileNotFoundError with the names that were tried.
    """
    folder, names = Path(folder), list(names)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to find {' or '.join(names)} in")
    tried = [n + s for n in names for s in ([""] if n.lower().endswith(SUFFIXES) else SUFFIXES)]
    for place in (folder, folder / "flownets"):
        present = {child.name.lower(): child for child in place.iterdir()} if place.is_dir() else {}
        for name in tried:
            found = place / name if (place / name).is_file() else present.get(name.lower())
            if found is not None and found.is_file():
                return found
    raise FileNotFoundError(f"{folder} has none of {', '.join(tried)}")


def save(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a state dict as safetensors, atomically.

    Each entry is written separately, even if entries share memory. `metadata` values are stored as text. Raises
    ValueError for another suffix or a folder that does not exist, and OSError if the file cannot be written.
    """
    path, seen, tensors = Path(path), set(), {}
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise ValueError(f"got {path}, expected a name ending in .safetensors in a folder that exists")
    for name, value in state.items():
        memory = value.untyped_storage().data_ptr()
        tensors[name] = value.clone().contiguous() if memory in seen else value.contiguous()
        seen.add(memory)
    with atomic_file(path) as temporary:
        try:
            save_file(tensors, temporary, {"format": "pt"} | {k: str(v) for k, v in (metadata or {}).items()})
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written ({error})") from None


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, of as many bytes as it has when it is opened."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        left = os.fstat(file.fileno()).st_size  # files of /proc and /sys say 0, and reading some of them never ends
        while block := file.read(min(left, 1 << 20)):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
