"""Streaming: resumption, bounded memory and scene cuts."""

import torch

from ldm.methods.contract import Request
from ldm.streaming.pipeline import Frame
from tests.marks import mostly_slow
from tests.methods.toy import clip, method, pixelwise, scene_ends_of


@mostly_slow(
    "words",
    [
        ["sampling.guidance=released"],
        ["windows.n_frames=3", "windows.frame_overlap=1"],
        ["sampling.sampler=tcd", "sampling.spacing=trailing", "sampling.steps=3"],
        ["sampling.sampler=unipc", "sampling.steps=4", "windows.frame_overlap=0", "windows.alternate=true"],
        ["sampling.steps=3", "windows.frame_overlap=2", "windows.alternate=true", "windows.sharing_steps=2"],
    ],
)
def test_an_interrupted_and_resumed_stream_gives_the_same_bits(words):
    lq, toy = clip(7, 16, 20), method(*words)
    whole_clip = toy.restore(lq)
    run, restored = toy.stream(Request((16, 20))), []
    for number, frame in enumerate(lq):
        run.push(Frame(number, {"lq": frame[None]}))
        restored += run.pull()
        state, run = run.state(), toy.stream(Request((16, 20)))
        run.resume(state)
    restored += run.pull(finish=True)
    assert [frame.number for frame in restored] == list(range(7))
    assert torch.equal(torch.cat([frame["sr"] for frame in restored]), whole_clip)


def test_held_frames_do_not_grow_with_the_clip():
    toy = pixelwise("sampling.steps=2")
    run, held = toy.stream(Request((16, 16), upscale=1)), []
    for number, frame in enumerate(clip(1, 16, 16).expand(60, -1, -1, -1)):
        run.push(Frame(number, {"lq": frame[None]}))
        list(run.pull())
        held.append(run.frames_held)
    assert max(held[30:]) <= max(held[:30]) < 30


def test_nothing_crosses_a_scene_cut():
    """Two consecutive scenes give the same results as each scene alone with its frame numbers."""
    generator = torch.Generator().manual_seed(0)
    dark, bright = (torch.rand(1, 3, 16, 16, generator=generator).expand(n, -1, -1, -1) for n in (5, 4))
    words = ("windows.n_frames=4", "sampling.steps=1")
    toy = method(*words)
    both = toy.restore(torch.cat([dark, bright]))
    assert torch.equal(both[:5], toy.restore(dark))
    run = toy.stream(Request((16, 16)))
    for number, frame in enumerate(bright, start=5):
        run.push(Frame(number, {"lq": frame[None]}))
    assert torch.equal(both[5:], torch.cat([frame["sr"] for frame in run.pull(finish=True)]))
    blended = method(*words, "windows.scene_cut=null").restore(torch.cat([dark, bright]))
    assert (blended[:5] - both[:5]).abs().max() > 1e-3
    two, request = torch.cat([dark, bright]), Request((16, 16))
    assert scene_ends_of(toy.find_scenes(request), two) == scene_ends_of(toy.stream(request), two) == [4, 8]


def test_frames_of_8_and_16_bits_are_accepted():
    toy, lq = method(), (clip(2, 16, 16) * 255).round()
    for dtype, factor in ((torch.uint8, 1), (torch.uint16, 257)):
        run = toy.stream(Request((16, 16), upscale=2))
        for number, frame in enumerate(lq):
            run.push(Frame(number, {"lq": (frame[None] * factor).to(dtype)}))
        out = torch.cat([frame["sr"] for frame in run.pull(finish=True)])
        assert (out - toy.restore(lq / 255, upscale=2)).abs().max() < 1e-5


def test_the_empty_text_is_encoded_once():
    toy, calls = method(), []
    hook = toy.networks["text"].register_forward_hook(lambda *_: calls.append(1))
    toy.restore(clip(4, 16, 16), upscale=1)
    hook.remove()
    assert len(calls) == 1
