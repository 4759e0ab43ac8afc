"""Headers of safetensors files."""

import torch

from ldm.weights import checkpoint


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path):
    """The first byte of a safetensors file is the low byte of its header's length: it may be 0x80, or "P"."""
    for byte in (0x80, ord("P")):
        for padding in range(256):
            file = tmp_path / f"{byte}-{padding}.safetensors"
            checkpoint.save(file, {"weight": torch.ones(2)}, {"note": "x" * padding})
            if file.read_bytes()[0] == byte:
                assert torch.equal(checkpoint.read(file)["weight"], torch.ones(2))
                break
            file.unlink()
        else:
            assert byte != 0x80, "headers are padded to multiples of 8, 0x80 among them"
