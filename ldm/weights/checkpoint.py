"""Weight files: read without running code from them, loaded strictly, found, written."""

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.files import partial
from ldm.printable import printable
from ldm.weights.safe import NAMED, SUFFIXES, CheckpointError, check_sizes, check_tensor, content_of
from ldm.weights.safe import STAND_INS as STAND_INS

SHOWN = 3  # names per list in a message
CONTAINERS = ("state_dict", "params_ema", "model", "params")  # where trainers put weights; the first that is there
DEEPEST = 4  # containers within each other
AVERAGES = "model_ema."
COMPILED = "_orig_mod"  # what torch.compile puts into names
CHUNK = 1 << 22  # values that are looked at together
log = logging.getLogger(__name__)


class Layout(NamedTuple):
    """Which part of a file belongs to which network.

    slots: slot name -> {prefix in the file: prefix in the network}. ignored: shell patterns of names no network takes.
    """

    file: str
    slots: Mapping[str, Mapping[str, str]]
    ignored: tuple[str, ...]


# Recomputed in float64 from the configuration (diffusion/schedule.py), so the float32 copies in the file are not read.
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
STAGE_ONE = Layout(
    file="mgldvsr_unet.ckpt",
    slots={
        "unet": {"model.diffusion_model.": ""},
        "autoencoder": {"first_stage_model.": ""},
        "text": {"cond_stage_model.model.": ""},
        "structure": {"structcond_stage_model.": ""},
        "flow": {"flownet_model.": ""},
    },
    ignored=SCHEDULE_BUFFERS,
)
# LPIPS, the discriminator, SpyNet and logvar are what stage 2 was trained with; inference does not need them.
STAGE_TWO = Layout(
    file="video_vae_cfw.ckpt",
    slots={
        "sequence_autoencoder": {p: p for p in ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")},
    },
    ignored=("loss.*",),
)

# (name, parts that some entry must contain, parts that none may contain); the first that fits is it.
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
    """The flat state dict of a weight file, on the CPU, without the prefixes of DataParallel and `torch.compile`.

    Safetensors, or a pickle of tensors, possibly under one of `CONTAINERS`; of several the first is taken, and the log
    says which. The moving averages of Stable Diffusion's checkpoints (`model_ema.`) are left out. No code from the file
    runs: the few classes that released Lightning 1.4 checkpoints hold beside their tensors become inert stand-ins, any
    other makes the file refused.

    Raises FileNotFoundError; CheckpointError for a file that is empty, damaged, foreign, in pieces, needs more than
    that, or whose entries claim more values than it holds.
    """
    path = Path(path)
    content = _contained(content_of(path), path)
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
    """The names and tensors in what a file holds."""
    for _ in range(DEEPEST):
        found = [key for key in CONTAINERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
        if not found:
            break
        if len(found) > 1:
            log.info("%s: takes %s, not %s", printable(path), found[0], ", ".join(found[1:]))
        content = content[found[0]]
    return content


def _plain_name(name: str) -> str:
    """An entry's name without what `torch.compile` put into it."""
    return ".".join(part for part in name.split(".") if part != COMPILED) if COMPILED in name else name


def load(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    tolerated_missing: Iterable[str] = (),
    ignored: Iterable[str] = (),
) -> None:
    """Load `state` into `module` strictly; nothing is changed unless all of it fits.

    `tolerated_missing` and `ignored` are shell patterns of names: entries the network may keep as they are, entries of
    the file nobody takes. Values keep the network's dtype; a network on the meta device takes over the file's tensors.

    Raises CheckpointError listing missing, unexpected, mis-shaped and mis-typed entries with the likely cause, or
    naming an entry with NaN or infinite values.
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
    """Load the parts of a file into the networks of its slots, as strictly as `load`; all fit or none changes.

    A slot that is not in `modules` (or None there) must have no entries in the file, unless `absent` names it.
    `tolerated_missing` are shell patterns of names as in the file.

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
            names = {name_in_file(name, prefixes): name for name in own}
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
        _put(given[slot], {inside: state[outside] for inside, outside in names.items()})


def name_in_file(own: str, prefixes: Mapping[str, str]) -> str:
    """The name in the file of an entry of a network."""
    fits = ((outside, inside) for outside, inside in prefixes.items() if own.startswith(inside))
    outside, inside = next(fits, ("", ""))
    return outside + own.removeprefix(inside)


def _require_values(module: nn.Module, given: Iterable[str]) -> None:
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_meta and name not in given:
            raise CheckpointError(f"{name} is on the meta device and not in the file; build the network on the CPU")


def _put(module: nn.Module, values: dict[str, Tensor]) -> None:
    own = module.state_dict()
    values = {name: value.to(own[name].dtype) for name, value in values.items()}
    module.load_state_dict(own | values, assign=any(value.is_meta for value in own.values()))


def slots_held(state: Mapping[str, Tensor], layout: Layout) -> list[str]:
    """The slots of a layout that a file has entries for."""
    return [slot for slot, prefixes in layout.slots.items() if any(n.startswith(tuple(prefixes)) for n in state)]


class _Report(NamedTuple):
    """What does not fit, as names in the file."""

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
        parts = [
            f"{len(names)} {kind.replace('_', '-')}: {_first(names)}" for kind, names in self._asdict().items() if names
        ]
        return f"the weights do not fit: {'; '.join(parts)}. {self._cause(layout, state, given)}"

    def _cause(self, layout: Layout, state: Mapping[str, Tensor], given: Mapping[str, nn.Module]) -> str:
        kind = recognise(state)
        if kind and layout.file and not kind.startswith(layout.file):
            return f"This looks like {kind}, expected {layout.file}"
        if self.mis_typed:
            return "Quantised weights cannot be used; take a file of floating-point numbers"
        if self.mis_shaped and not self.missing and not self.unexpected:
            return "Same names, other widths: wrong configuration for these weights"
        unbuilt = [s for s in slots_held(state, layout) if s not in given]
        if unbuilt and not self.missing and not self.mis_shaped:
            return f"The file also holds {', '.join(unbuilt)}, which was not built: name it as absent to leave it out"
        unfilled = [s for s in given if s not in slots_held(state, layout)]
        if unfilled:
            return f"The file holds nothing for {', '.join(unfilled)}"
        if len(self.missing) + len(self.unexpected) >= len(state):
            return "No name agrees: another network's weights, or names under another prefix"
        return "Likely another version of the network, or a configuration with other levels or blocks"


def _first(names: list[str]) -> str:
    """The first names of a list, fit for a message."""
    return ", ".join(printable(name, NAMED) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def recognise(names: Iterable[str]) -> str:
    """The published file that entry names look like, '' if none."""
    text = "\n".join(f"\n{name}" for name in names)
    for file, having, lacking in KNOWN_FILES:
        if all(part in text for part in having) and not any(part in text for part in lacking):
            return file
    return ""


def require_finite(name: str, value: Tensor) -> None:
    """Raise CheckpointError naming an entry that holds NaN or infinity."""
    if not value.is_floating_point() or value.is_meta:
        return
    if all(math.isfinite(chunk.sum(dtype=torch.float64).item()) for chunk in value.reshape(-1).split(CHUNK)):
        return
    bad = sum(int((~chunk.isfinite()).sum()) for chunk in value.reshape(-1).split(CHUNK))
    if bad:
        what = f"{bad} NaN or infinite values of {value.numel()}"
        raise CheckpointError(f"{printable(name, NAMED)} holds {what}; the file is damaged")


def find(folder: str | Path, names: str | Iterable[str]) -> Path:
    """The first weight file in `folder` or its `flownets/` that has one of `names`.

    A name without a known suffix is tried with each, `.safetensors` first; capitals do not matter. Raises
    FileNotFoundError listing the names.
    """
    folder, names = Path(folder), [names] if isinstance(names, str) else list(names)
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
    """Write a state dict as safetensors under a temporary name, then rename it: never half a file.

    Entries that share memory are written once each. `metadata` values are stored as text.
    """
    path, seen, whole = Path(path), set(), {}
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise ValueError(f"got {path}, expected a name ending in .safetensors in a folder that exists")
    for name, value in state.items():
        memory = value.untyped_storage().data_ptr()
        whole[name] = value.clone().contiguous() if memory in seen else value.contiguous()
        seen.add(memory)
    with partial(path) as temporary:
        save_file(whole, temporary, {"format": "pt"} | {k: str(v) for k, v in (metadata or {}).items()})


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
