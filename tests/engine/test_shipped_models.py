"""The small models that ship beside the embedded one: they have a card, are small, and keep colours."""

import pytest
import torch

from ldm.engine.assemble import CARD, EMBEDDED, load_method
from ldm.methods.contract import Request, restore_clip

SHIPPED = sorted(card.parent for card in EMBEDDED.parent.glob(f"*/{CARD}"))
OTHERS = [folder for folder in SHIPPED if folder != EMBEDDED]
MOST = 14_000_000  # bytes of one of the others


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_each_model_has_its_card_and_is_small():
    assert [folder.name for folder in OTHERS] == ["stablevsr_tiny", "upscale_a_video_tiny"]
    assert all((folder / "README.md").is_file() and size(folder) <= MOST for folder in OTHERS)


@pytest.mark.parametrize("folder", OTHERS, ids=lambda folder: folder.name)
def test_a_shipped_model_restores_colours(folder):
    method = load_method(folder)
    lq = torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1).expand(2, 3, 16, 20).contiguous()
    restored = restore_clip(method, lq, Request((16, 20), 2))
    assert restored.shape == (2, 3, 64, 80)
    assert (restored.mean(dim=(0, 2, 3)) - torch.tensor([0.2, 0.5, 0.8])).abs().max() < 0.1
