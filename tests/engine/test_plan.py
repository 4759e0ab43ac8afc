"""Memory: free memory, plans and their levers, and the accuracy of predictions."""

import math
from dataclasses import replace

import pytest
import torch

from ldm import memory
from ldm.engine import plan as plan_module
from ldm.engine.device import Peak, free_memory, is_out_of_memory, memory_budget
from ldm.engine.plan import (
    Plan,
    fitting_plan,
    measured_costs,
    parse_bytes,
    predicted_peak,
    resumed_plan,
    with_reserve,
)
from ldm.methods.contract import Request
from ldm.methods.mgld.conditions import MAX_CACHED_BYTES
from ldm.methods.mgld.levers import UNLIMITED, WHOLE, TileLevers, ladder
from ldm.methods.mgld.method import MGLD
from ldm.methods.mgld.settings import Decoding
from ldm.methods.windows import Windows
from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.sequence_decoder import SequenceAutoencoder
from ldm.streaming.pipeline import Frame
from tests.methods.toy import method


@pytest.mark.parametrize(
    ("text", "size"), [("12G", 12e9), ("1.5g", 1.5e9), ("800M", 8e8), ("800MB", 8e8), ("2GiB", 2e9), ("4096", 4096)]
)
def test_memory_sizes_are_parsed(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "0", "0G", "12X", "-3G", "1e9", "12 34G", "all"])
def test_invalid_memory_sizes_are_refused(text):
    with pytest.raises(ValueError, match="expected a size such as 12G"):
        parse_bytes(text)


def test_free_memory_respects_the_limit_of_a_container(monkeypatch, tmp_path):
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

    monkeypatch.setattr(memory, "Path", Machine)
    assert free_memory("cpu") == 800 * 1024
    files["/sys/fs/cgroup/memory.max"] = "301000\n"
    assert free_memory("cpu") == 300_000
    files["/sys/fs/cgroup/memory.stat"] = "anon 7\ninactive_file 20000\nactive_file 4000\n"
    assert free_memory("cpu") == 324_000, "pages of files are given back"
    files["/proc/self/status"] = "VmRSS:\t99 kB\nRssAnon:\t10 kB\nRssFile:\t50 kB\nRssShmem:\t1 kB\n"
    assert memory_budget("cpu") == 324_000 + 11 * 1024, "mapped files are free already"
    files.clear()
    assert free_memory("cpu") is None


def test_memory_that_torch_holds_in_reserve_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 60)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert free_memory("cuda:0") == 80


@pytest.mark.skipif(free_memory("cpu") is None or not Peak("cpu").reset(), reason="no /proc here")
def test_a_peak_is_measured():
    peak = Peak("cpu")
    before = peak.reset()
    torch.ones(40_000_000).sum()
    assert 150e6 < peak.read() - before < 400e6


def test_out_of_memory_errors_are_recognised():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(ValueError("memory"))


LEVERS = TileLevers(64, 32, 120, 24, "frame", UNLIMITED)
PLAN = Plan(LEVERS, 16)
NOTHING = dict.fromkeys(("sampling", "encoding", "decoding", "maps", "once"), [0, 0])


def peak_of(toy, levers=LEVERS, *, costs=NOTHING, part_frames=16, size=(64, 64), frames=10**4):
    return predicted_peak(toy, Plan(levers, part_frames), costs, Request(size, frames))


def test_levers_shrink_step_by_step_to_the_smallest():
    found = method("decoding.norms=auto", "windows.tile=64", "decoding.windows.tile=120").levers()
    assert all(levers.tile_overlap < levers.tile and levers.decoder_overlap < levers.decoder_tile for levers in found)
    seen = [(levers.norms, levers.tile, levers.decoder_tile) for levers in found]
    assert list(dict.fromkeys(seen))[:3] == [("frame", 64, 120), ("shared", 64, 120), ("tile", 64, 120)]
    assert seen[-1] == ("tile", 16, 16) and len(found) == len(set(found))
    assert all(tile % 2 == 0 for _, tile, _ in seen)


def test_plans_off_the_cpu_begin_with_the_whole_frame():
    windows, decoding = Windows(tile=64), Decoding(norms="auto")
    here, there = ladder(windows, decoding, step=8), ladder(windows, decoding, step=8, on_cpu=False)
    assert there[2:] == here
    assert [levers.decoder_tile for levers in there[:3]] == [WHOLE, WHOLE, decoding.windows.tile]
    assert there[0].cached > there[1].cached == here[0].cached
    cut = ladder(windows, Decoding(norms="tile"), step=8, on_cpu=False)[0]
    assert cut.decoder_tile == decoding.windows.tile  # blended tiles are another result


def test_the_largest_plan_that_fits_is_taken():
    toy = method("decoding.windows.tile=120")
    first = Plan(toy.levers()[0], 16)

    def predict(plan):
        return plan.levers.decoder_tile**2 * 1000

    assert fitting_plan(toy, first, 10**9, predict) == (first, 14_400_000)
    plan, need = fitting_plan(toy, first, 4_100_000, predict)
    assert plan.levers.decoder_tile == 60 and need == 3_600_000
    with pytest.raises(ValueError, match="got 0.0 GB of memory, expected 0.0 GB with the smallest tiles"):
        fitting_plan(toy, first, 1000, predict)
    assert fitting_plan(toy, first, 1000, lambda plan: None) == (first, None)


def test_a_plan_is_restored_from_a_manifest():
    toy = method()
    plans = [Plan(levers, 3) for levers in toy.levers()]
    assert [resumed_plan(toy, plan.plain(), part_frames=3) for plan in plans] == plans
    assert resumed_plan(toy, plans[0].plain(), part_frames=4) is None and resumed_plan(toy, None, part_frames=3) is None
    assert plans[0].next(toy) == plans[1] and plans[-1].next(toy) is None


def test_a_video_encoder_counts_as_memory():
    toy = method()
    short, part, long = (peak_of(toy, part_frames=count) for count in (1, 16, 1000))
    assert part - short == 15 * 15 * 256**2 and long - part == 8 * 15 * 256**2


def test_a_reserve_is_added_to_predictions():
    assert with_reserve(900, "cuda") == 1000 and with_reserve(900, "cpu") > 10**8


def test_cached_maps_count_as_memory():
    toy = method()

    def peak(**changed):
        return peak_of(toy, costs=NOTHING | changed, size=(16, 16), frames=100)

    h, w = toy.geometry((16, 16), 4).latent
    kept = len(toy.sampling.schedule) * toy.windows.frame_overlap * h * w
    assert kept and peak(maps=[0, 8]) - peak() == 8 * kept and peak(once=[5000, 0]) - peak() == 5000
    assert peak(maps=[0, 10**9]) - peak() == MAX_CACHED_BYTES, "no more are kept"
    tiles, several = replace(LEVERS, tile=16, tile_overlap=4), NOTHING | {"maps": [0, 8]}
    one = peak_of(toy, tiles, costs=several, size=(32, 32), frames=100)
    assert peak_of(method("windows.batch=2"), tiles, costs=several, size=(32, 32), frames=100) == one


def test_held_frames_count_as_memory():
    toy = method()
    geometry, count = toy.geometry((64, 64), 4), toy.frames_held
    latents = math.prod(geometry.latent) * (2 * 4 + 6) * 4
    assert peak_of(toy, frames=10**4) - peak_of(toy, frames=1) >= (count - 1) * (latents + geometry.picture_bytes)


def test_cached_maps_have_the_measured_size():
    toy = method()
    probe, run = toy.probes(LEVERS)["maps"], toy.restoration(toy.levers()[0], seed=0, tally=lambda stage: None)
    z = torch.zeros(1, 4, 32, 32)
    with torch.no_grad():
        run.denoise([Frame(k, {"x": z, "z": z + k}) for k in range(toy.windows.n_frames)], i=0)
    tiles = toy.windows.calls(1, 32, 32) * min(toy.windows.tile, 32) ** 2
    assert run.conditions.bytes_kept == probe(16) / 16**2 * tiles * toy.windows.frame_overlap


@pytest.mark.parametrize("patch", [1, 2])
def test_held_maps_count_as_memory_at_the_size_that_the_networks_compute(patch):
    params = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "norm_groups": 8, "patch": patch}
    networks = {"autoencoder": AutoencoderKL(**params), "sequence_decoder": SequenceAutoencoder(**params)}
    toy, sizes = method(**networks), []
    for module in networks["sequence_decoder"].decoder.up[0].modules():
        module.register_forward_hook(lambda module, inputs, result: sizes.append(result.nbytes))
    h, w = toy.geometry((16, 16), 4).latent
    frames = toy.decoding.windows.n_frames
    toy.codec(LEVERS).decode(torch.zeros(1, frames, 4, h, w), torch.zeros(1, frames, 3, 64, 64))

    def peak(**changed):
        return peak_of(toy, replace(LEVERS, **changed), size=(16, 16))

    assert peak(norms="shared", hold=UNLIMITED) - peak(norms="tile") == 3 * max(sizes)
    assert peak(norms="shared", hold=1000) - peak(norms="tile") == 3 * 1000


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "unipc"])
def test_costs_are_measured_with_every_kind_of_sampler(sampler):
    assert measured_costs(method(f"sampling.sampler={sampler}", "sampling.steps=2"), signature="")["sampling"]


def test_the_description_of_a_plan_mentions_approximations():
    texts = [str(Plan(replace(LEVERS, norms=norms), 16)) for norms in ("frame", "shared", "tile")]
    assert ["approximate" in text for text in texts] == [False, True, True]
    assert "decoded exactly," in texts[0]


def test_costs_are_measured_once(tmp_path, monkeypatch):
    toy = method()
    monkeypatch.setattr(plan_module, "PROBE_SIDES", (8, 16))
    costs = measured_costs(toy, signature="a", cache=tmp_path)
    assert set(costs) == {"sampling", "encoding", "decoding", "maps", "once"} and all(
        min(pair) >= 0 for pair in costs.values()
    )
    monkeypatch.setattr(MGLD, "probes", lambda self, levers: {})
    assert measured_costs(toy, signature="a", cache=tmp_path) == costs
    assert measured_costs(toy, signature="b", cache=tmp_path) != costs


def test_the_prediction_follows_tiles_and_not_the_clip():
    toy = method()
    costs = NOTHING | {"sampling": [0, 2e3], "encoding": [0, 1e3], "decoding": [1e6, 9e3]}

    def peak(levers, frames, size=(64, 64)):
        return peak_of(toy, levers, costs=costs, size=size, frames=frames)

    tiles = replace(LEVERS, norms="tile", decoder_tile=32)
    assert peak(tiles, 10**4) == peak(tiles, 10**6) > peak(tiles, 1)
    assert peak(LEVERS, 100) > peak(tiles, 100)
    assert peak(LEVERS, 1, size=(16, 16)) < 20e6  # a frame smaller than a tile holds nothing more than itself
    shared = replace(LEVERS, norms="shared", hold=10**12)
    assert peak(tiles, 1) < peak(replace(shared, decoder_tile=32), 1) < 20 * peak(tiles, 1)
    assert peak(tiles, 100, size=(128, 128)) < 4.1 * peak(tiles, 100)


@pytest.mark.parametrize("probe", ["sampling", "encoding", "decoding"])
def test_each_stage_can_decide_the_peak(probe):
    """The peak is that of the largest stage; pictures that are encoded or decoded come with float32 copies."""
    toy = method()
    nothing = peak_of(toy, frames=1, part_frames=1)
    picture = toy.geometry((64, 64), 4).picture_bytes
    copies = 0 if probe == "sampling" else 3.5 * picture
    assert nothing > 3.5 * picture
    large = peak_of(toy, costs=NOTHING | {probe: [10**9, 0]}, frames=1, part_frames=1)
    assert large - nothing == 10**9 + copies - 3.5 * picture
    grows = peak_of(toy, costs=NOTHING | {probe: [10**9, 7]}, frames=1, part_frames=1)
    assert grows - large == 7 * 64**2, "latents of 64x64, in one tile"


def test_the_prediction_is_the_sum_of_its_terms():
    toy = method("decoding.windows.n_frames=1")
    geometry, h, w = toy.geometry((64, 64), 4), 64, 64
    lq, latents = 3 * 2 * 64 * 64, (2 * 4 + 2 * (2 + 1)) * 4 * h * w
    held = latents + lq + geometry.picture_bytes
    encoder = 15 * 256**2 + 10**7
    assert peak_of(toy, frames=1, part_frames=1) == 3.5 * geometry.picture_bytes + held + encoder
    assert peak_of(toy, frames=10**4) - peak_of(toy, frames=10**4, part_frames=1) == 15 * 15 * 256**2
    more = peak_of(toy, frames=10**4, part_frames=1) - peak_of(toy, frames=1, part_frames=1)
    assert more == (toy.frames_held - 1) * held
