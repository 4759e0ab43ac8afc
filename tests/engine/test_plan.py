"""Memory: what is free, what a plan takes, how it shrinks, and that the prediction is near the truth."""

import dataclasses

import pytest
import torch

from ldm.engine import device
from ldm.engine.device import Peak, free_memory, is_out_of_memory
from ldm.engine.plan import Plan, fitting_plan, measured_costs, parse_bytes, predicted_peak, with_spare
from ldm.methods.conditions import KEPT
from ldm.streaming.pipeline import Frame
from tests.methods.toy import method


@pytest.mark.parametrize(
    ("text", "size"), [("12G", 12e9), ("1.5g", 1.5e9), ("800M", 8e8), ("800MB", 8e8), ("2GiB", 2e9), ("4096", 4096)]
)
def test_sizes_of_memory(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "0", "0G", "12X", "-3G", "1e9", "12 34G", "all"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="expected a size such as 12G"):
        parse_bytes(text)


def test_free_memory_minds_the_limit_of_a_container(monkeypatch, tmp_path):
    files = {
        "/proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 800 kB\n",
        "/sys/fs/cgroup/memory.max": "max\n",
        "/sys/fs/cgroup/memory.current": "1000\n",
    }

    class Machine(type(tmp_path)):
        def read_text(self, **options):
            if str(self) not in files:
                raise FileNotFoundError(self)
            return files[str(self)]

    monkeypatch.setattr(device, "Path", Machine)
    assert free_memory("cpu") == 800 * 1024
    files["/sys/fs/cgroup/memory.max"] = "301000\n"
    assert free_memory("cpu") == 300_000
    files.clear()
    assert free_memory("cpu") is None


def test_memory_that_torch_holds_in_reserve_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert free_memory("cuda:0") == 80


@pytest.mark.skipif(free_memory("cpu") is None or not Peak("cpu").reset(), reason="no /proc here")
def test_a_peak_is_seen():
    peak = Peak("cpu")
    before = peak.reset()
    torch.ones(40_000_000).sum()
    assert 150e6 < peak.read() - before < 400e6


def test_which_errors_are_a_lack_of_memory():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(ValueError("memory"))


PLAN = Plan(64, 32, 120, 24, "frame", 2**60, 16)


def test_a_plan_shrinks_step_by_step_to_the_smallest():
    seen, plan = [], PLAN
    while plan is not None:
        seen.append((plan.norms, plan.tile, plan.decoder_tile))
        assert plan.tile_overlap < plan.tile and plan.decoder_overlap < plan.decoder_tile
        plan = plan.smaller(step=8)
    assert seen[:3] == [("frame", 64, 120), ("shared", 64, 120), ("tile", 64, 120)]
    assert seen[-1] == ("tile", 16, 16) and len(seen) == len(set(seen))
    assert all(tile % 8 == 0 for _, tile, _ in seen)


def test_the_largest_plan_that_fits_is_taken():
    def predict(plan):
        return plan.decoder_tile**2 * 1000

    assert fitting_plan(method(), PLAN, 10**9, predict) == (PLAN, 14_400_000)
    plan, need = fitting_plan(method(), PLAN, 4_100_000, predict)
    assert plan.decoder_tile == 60 and need == 3_600_000
    with pytest.raises(ValueError, match="got 0.0 GB of memory, expected 0.0 GB with the smallest tiles"):
        fitting_plan(method(), PLAN, 1000, predict)


def test_an_encoder_takes_memory():
    toy, costs = method(), dict.fromkeys(("sampling", "encoding", "decoding", "maps", "once"), [0, 0])
    short, part, long = (
        predicted_peak(toy, dataclasses.replace(PLAN, part_frames=count), costs, size=(64, 64), upscale=4, frames=10**4)
        for count in (1, 16, 1000)
    )
    assert part - short == 15 * 15 * 256**2 and long - part == 8 * 15 * 256**2


def test_what_is_not_counted_has_room():
    assert with_spare(900) == 1000


def test_maps_that_are_kept_take_memory():
    toy = method()
    costs = dict.fromkeys(("sampling", "encoding", "decoding", "maps", "once"), [0, 0])

    def peak(**changed):
        given = costs | changed
        return predicted_peak(toy, PLAN, given, size=(16, 16), upscale=4, frames=100)

    h, w = toy.geometry((16, 16), 4).latent
    kept = len(toy.sampling.schedule) * toy.windows.frame_overlap * h * w
    assert kept and peak(maps=[0, 8]) - peak() == 8 * kept and peak(once=[5000, 0]) - peak() == 5000
    assert peak(maps=[0, 10**9]) - peak() == KEPT, "no more are kept"
    tiles, several = dataclasses.replace(PLAN, tile=16, tile_overlap=4), costs | {"maps": [0, 8]}
    one = predicted_peak(toy, tiles, several, size=(32, 32), upscale=4, frames=100)
    toy.windows = dataclasses.replace(toy.windows, batch=2)
    assert predicted_peak(toy, tiles, several, size=(32, 32), upscale=4, frames=100) == one


def test_kept_maps_are_as_large_as_was_measured(tmp_path):
    toy = method()
    costs, kept = measured_costs(toy), toy._conditions
    toy._conditions.forget()
    latents = torch.zeros(1, 4, 32, 32)
    toy.denoise_window([Frame(k, {"x": latents, "z": latents + k}) for k in range(toy.windows.n_frames)])
    tiles = toy.windows.calls(1, 32, 32) * min(toy.windows.tile, 32) ** 2
    assert kept._bytes() == costs["maps"][1] * tiles * toy.windows.frame_overlap


def test_a_plan_says_what_is_approximate():
    texts = [str(dataclasses.replace(PLAN, norms=norms)) for norms in ("frame", "shared", "tile")]
    assert ["approximate" in text for text in texts] == [False, True, True]
    assert "decoded exactly," in texts[0]


def test_a_plan_is_given_to_the_method_and_read_from_it():
    toy = method()
    toy.decoding = dataclasses.replace(toy.decoding, norms="auto")
    assert Plan.of(toy, part_frames=3).norms == "frame"
    PLAN.apply(toy)
    assert Plan.of(toy, part_frames=16) == PLAN


def test_costs_are_measured_once(tmp_path, monkeypatch):
    costs = measured_costs(method(), cache=tmp_path)
    assert set(costs) == {"sampling", "encoding", "decoding", "maps", "once"} and all(
        min(pair) >= 0 for pair in costs.values()
    )
    again = []
    monkeypatch.setattr("ldm.engine.plan._stages", lambda method: again.append(method) or {})
    assert measured_costs(method(), cache=tmp_path) == costs and not again
    measured_costs(method("+method.params.decoding.params.norms=frame"), cache=tmp_path)
    assert len(again) == 1, "what decoding takes depends on what norms see"


def test_the_prediction_follows_tiles_and_not_the_clip():
    toy, costs = method(), {"sampling": [0, 2e3], "encoding": [0, 1e3], "decoding": [1e6, 9e3]}
    costs |= {"maps": [0, 0], "once": [0, 0]}

    def peak(plan, frames, size=(64, 64)):
        return predicted_peak(toy, plan, costs, size=size, upscale=4, frames=frames)

    tiles = dataclasses.replace(PLAN, norms="tile", decoder_tile=32)
    assert peak(tiles, 10**4) == peak(tiles, 10**6) > peak(tiles, 1)
    assert peak(PLAN, 100) > peak(tiles, 100)
    assert peak(PLAN, 1, size=(16, 16)) < 20e6  # a frame smaller than a tile holds nothing more than itself
    shared = dataclasses.replace(PLAN, norms="shared", hold=10**12)
    assert peak(tiles, 1) < peak(dataclasses.replace(shared, decoder_tile=32), 1) < 20 * peak(tiles, 1)
    assert peak(tiles, 100, size=(128, 128)) < 4.1 * peak(tiles, 100)
