"""Words that settings of methods are chosen from."""

from collections.abc import Mapping

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = "auto"  # a precision that depends on the device
FAST_BF16, FAST_FP16 = 8, 7  # major compute capability of CUDA devices with tensor cores for these types


def precision_on(device: torch.device | str, word: str) -> str:
    """Return the precision that a word means on a device: for "auto", the fastest one that is safe there.

    On CUDA that is bf16, on devices without tensor cores for it fp16, and without any fp32; fp32 elsewhere. Raises
    ValueError for an unknown word.
    """
    if word != AUTO:
        choose({**PRECISIONS, AUTO: None}, word, "precision")
        return word
    if torch.device(device).type != "cuda":
        return "fp32"
    major = torch.get_device_module(device).get_device_capability(device)[0]
    if major >= FAST_BF16:
        return "bf16"
    return "fp16" if major >= FAST_FP16 else "fp32"


def choose(table: Mapping, word: str, what: str):
    """`table[word]`. Raises ValueError that lists the known words."""
    if word not in table:
        raise ValueError(f"got {what} {word!r}, expected one of {', '.join(map(str, table))}")
    return table[word]
