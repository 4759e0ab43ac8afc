"""Words that settings of methods are chosen from."""

from collections.abc import Mapping

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(table: Mapping, word: str, what: str):
    """`table[word]`. Raises ValueError that lists the known words."""
    if word not in table:
        raise ValueError(f"got {what} {word!r}, expected one of {', '.join(map(str, table))}")
    return table[word]
