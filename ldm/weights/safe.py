"""Read weight files as data: no code from a file is executed, and memory use is bounded by the size of the file.

Two formats are supported: safetensors, and pickles of tensors as written by `torch.save`.
"""

import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ldm.printable import printable

PICKLES = (".ckpt", ".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *PICKLES)
LEGACY_PICKLES = 5  # at the beginning of files that PyTorch wrote before 1.6: the fourth holds the entries
# names of codecs of Python that make bytes from bytes, under which a short text grows at every step
DOUBLING = ("hex", "hex_codec", "base64", "base_64", "base64_codec", "quopri", "quopri_codec", "quoted_printable")
DOUBLING += ("quotedprintable", "uu", "uu_codec", "bz2", "bz2_codec", "zip", "zlib", "zlib_codec")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.\w+")
MAX_NAME = 120  # maximum length of an entry's name in a message
MAX_SHARING = 4  # maximum ratio of all entries to the size of the file; above 1 because of shared memory (tied weights)


class CheckpointError(ValueError):
    """A weight file that cannot be used; the message is one line with the name of the file or the entries."""


class _Inert:
    """Inert replacement for classes in released checkpoints: accepts any arguments and does nothing."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def _inert(name: str) -> type:
    module, _, leaf = name.rpartition(".")
    return type(leaf, (_Inert,), {"__module__": module, "__qualname__": leaf})


# Lightning 1.4 uses callback classes as keys, and learning-rate schedulers store NumPy numbers. Others are refused.
STAND_INS = tuple(
    _inert(name)
    for name in (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
    )
)


def read_content(path: Path) -> Any:
    """Return the object stored in a weight file, on the CPU. Raises FileNotFoundError or CheckpointError."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    if path.name.lower().endswith(".index.json"):
        raise CheckpointError(f"{path}: the index of a sharded file; merge the shards into one .safetensors first")
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{path}: got suffix {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
    if shard := SHARD.search(path.name):
        number, count = int(shard[1]), int(shard[2])
        raise CheckpointError(f"{path}: shard {number} of {count}; merge the shards into one .safetensors first")
    return _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)


def check_tensor(name: str, value: Any, path: Path) -> None:
    """Raise CheckpointError unless an entry is a dense tensor with all its values in the file."""
    what = f"{path}: entry {printable(repr(name), MAX_NAME)}"
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise CheckpointError(f"{what} is a {type(value).__name__}, expected only tensors")
    if value.is_meta:
        raise CheckpointError(f"{what} holds no values")
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        raise CheckpointError(f"{what} is sparse, quantised or nested, expected an ordinary tensor")
    wanted, held = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    if wanted > held:
        raise CheckpointError(f"{what} has {wanted} bytes of values, but the file holds {held} for it")


def check_nested(content: Any) -> None:
    """Raise ValueError if a tensor in nested dictionaries and lists has more values than its storage."""
    waiting, seen = [content], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, Tensor):
            if node.is_meta or node.layout is not torch.strided or node.is_quantized or node.is_nested:
                raise ValueError("not an ordinary tensor")
            if node.numel() * node.element_size() > node.untyped_storage().nbytes():
                raise ValueError("a tensor larger than its values")
        elif isinstance(node, (dict, list, tuple)) and id(node) not in seen:
            seen.add(id(node))
            waiting += node.values() if isinstance(node, dict) else node


def check_sizes(content: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError if all entries together are much larger than the file."""
    total, held = sum(value.numel() * value.element_size() for value in content.values()), path.stat().st_size
    if total > MAX_SHARING * held:
        raise CheckpointError(f"{path}: its entries take {total} bytes, {held} are in the file; not used")


def _is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors. Raises CheckpointError for a wrong suffix or a failed download."""
    with path.open("rb") as file:
        head = file.read(64)
    text = head.lstrip().lower()
    if not text:
        raise CheckpointError(f"{path}: the file is empty; download or copy it again")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull`")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path}: a web page, not weights; download the file itself")
    has_suffix = path.suffix.lower() == ".safetensors"
    if has_suffix and head.startswith((b"PK", b"\x80")) and head[8:9] != b"{":  # a length may begin like a pickle
        raise CheckpointError(f"{path}: holds a pickle, not safetensors; name it {path.with_suffix('.ckpt').name}")
    if not has_suffix and head[7:10] == b'\0{"':
        raise CheckpointError(f"{path}: holds safetensors; name it {path.with_suffix('.safetensors').name}")
    return has_suffix


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged or not safetensors: {_line(error)}; copy it again") from error
    except MemoryError:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes do not fit into memory") from None


def _read_pickle(path: Path) -> Any:
    try:
        zipped = refuse_bombs(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(STAND_INS)):
            warnings.simplefilter("ignore")  # of pickles by other programs, which are refused
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except UnpicklingError as error:
        forbidden = re.search(r"GLOBAL ([\w.]+)|function (<[^>]*>)", str(error))
        if forbidden:
            name = printable(forbidden[1] or forbidden[2], MAX_NAME)
            raise CheckpointError(
                f"{path}: holds {name}, more than weights; nothing of it was run. If you trust "
                "the file, convert it to safetensors on a machine where running it does no harm"
            ) from error
        raise CheckpointError(f"{path}: damaged, or not a PyTorch weight file; copy it again") from error
    except Exception as error:  # a damaged pickle can raise any error: KeyError, IndexError, struct.error ...
        raise CheckpointError(f"{path}: damaged, or not a PyTorch weight file; copy it again") from error


def refuse_bombs(path: Path) -> bool:
    """Return whether the file is a zip. Raises CheckpointError for a pickle that needs much more memory than its file.

    Examples are archives with compressed members, and calls that PyTorch's reader of weights allows but that allocate
    as many bytes as a number states (`bytearray`) or double their input (`encode` by a codec such as hex).
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(LEGACY_PICKLES):
                if not _scan(file, path):
                    break
        return False
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if total > path.stat().st_size:
            raise CheckpointError(f"{path}: unpacks to {total} bytes, expected an archive without compression")
        for member in members:
            if member.filename.endswith(".pkl"):
                with archive.open(member) as file:
                    _scan(file, path)
    return True


def _scan(file: BinaryIO, path: Path) -> bool:
    """Check the names and strings of a pickle; False if it is not a pickle. Raises CheckpointError."""
    encodes = doubles = False
    try:
        for code, value, _ in pickletools.genops(file):
            if code.name == "GLOBAL":
                if value.rpartition(" ")[2] == "bytearray":
                    raise CheckpointError(f"{path}: holds a bytearray, more than weights; nothing of it was run")
                encodes = encodes or value.endswith(" encode")
            elif isinstance(value, str):
                doubles = doubles or value.replace("-", "_").casefold() in DOUBLING
    except CheckpointError:
        raise
    except Exception:  # no pickle, or a damaged one, of which PyTorch's reader tells more
        return False
    if encodes and doubles:
        raise CheckpointError(f"{path}: holds text that grows when it is read; nothing of it was run")
    return True


def _line(error: BaseException) -> str:
    return printable(next(iter(str(error).strip().splitlines()), type(error).__name__), 200)
