"""The demo clip that is delivered with the code."""

from pathlib import Path

from ldm import video

CLIP = Path(__file__).parents[2] / "assets" / "demo" / "clip.mp4"


def test_the_demo_clip_is_small_whole_and_in_colour():
    assert CLIP.stat().st_size < 300_000
    source = video.probe(CLIP)
    assert (source.width, source.height, source.frames, source.rate) == (160, 90, 24, 24)
    clip = video.read_clip(source)
    assert clip.shape == (24, 3, 90, 160)
    assert clip.std() > 0.15
    assert (clip[0] - clip[-1]).abs().mean() > 0.02
