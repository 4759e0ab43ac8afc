"""Stage-2 sets: what is written is read back, in any of the known layouts; what does not fit is named."""

import logging
import shutil

import numpy as np
import pytest
import torch

from basicsr_deg.latent_clips import LatentClips, is_written, remove_partial, write_latent_clip


def content(count=6, clip=0, size=16):
    """Frames and latents that say which clip and frame they are; degraded 4 times smaller, latents too."""
    numbers = np.arange(count)[:, None, None, None]
    gt = np.broadcast_to(np.array([20 * clip, 0, 100]) + numbers * [0, 10, 0], (count, size, size, 3)).astype(np.uint8)
    latent = np.broadcast_to(clip + 0.1 * numbers, (count, 4, size // 4, size // 4))
    return {"gt": gt, "lq": gt[:, ::4, ::4], "sample": 255 - gt, "latent": latent}


@pytest.fixture
def folder(tmp_path):
    for clip in range(3):
        write_latent_clip(tmp_path, f"c{clip}", content(clip=clip))
    return tmp_path


def shown(item):
    """(clip, numbers of frames) of an item; all its kinds must agree."""
    clip = int((item["gt"][0, 0, 0, 0] * 255).round()) // 20
    numbers = (item["gt"][:, 1, 0, 0] * 25.5).round().int().tolist()
    expected = content(clip=clip)
    for kind, scale in (("gt", 255), ("lq", 255), ("sample", 255), ("latent", 1)):
        pixels = expected[kind][numbers].astype(np.float32) / scale
        pixels = pixels if kind == "latent" else pixels.transpose(0, 3, 1, 2)
        assert item[kind].dtype == torch.float32
        np.testing.assert_allclose(item[kind].numpy(), pixels, atol=1e-6)
    return clip, numbers


def test_what_is_written_is_read_back(folder):
    clips = LatentClips(root=str(folder), frames=2, seed=3)
    assert len(clips) == 3
    seen = [shown(clips[k]) for k in range(30)]
    assert {clip for clip, _ in seen} == {0, 1, 2}
    assert {tuple(numbers) for _, numbers in seen} == {(0, 1), (2, 3), (4, 5)}, "starts are multiples of T"
    assert [sorted(clip for clip, _ in seen[k : k + 3]) for k in range(0, 30, 3)] == [[0, 1, 2]] * 10
    again = LatentClips(root=str(folder), frames=2, seed=3)
    assert [shown(again[k]) for k in reversed(range(30))] == seen[::-1]


@pytest.mark.parametrize(
    "names",
    [
        {"gt": "gts", "lq": "inputs", "sample": "samples", "latent": "latents"},
        {
            "gt": "train_sharp_sub",
            "lq": "train_degrade_sub",
            "sample": "train_sample_sub",
            "latent": "train_latent_sub",
        },
    ],
)
def test_sets_of_others_are_recognised(folder, names, caplog):
    caplog.set_level(logging.INFO, "basicsr_deg")
    for ours, theirs in names.items():
        (folder / ours).rename(folder / theirs)
    shown(LatentClips(root=str(folder), frames=3)[0])
    assert f"{names['gt']}, {names['lq']}, {names['latent']}, {names['sample']}" in caplog.text
    roots = zip(("gt", "lq", "lt", "sp"), ("gt", "lq", "latent", "sample"), strict=True)
    given = LatentClips(**{f"dataroot_{key}": str(folder / names[kind]) for key, kind in roots}, frames=3)
    shown(given[0])


def test_single_pictures_are_clips_of_one_frame(tmp_path):
    """As in StableSR's sets, where a latent may have a batch axis."""
    write_latent_clip(tmp_path, "c", content(count=4))
    for kind in ("gt", "lq", "latent"):
        for path in (tmp_path / kind / "c").iterdir():
            path.rename(tmp_path / kind / path.name)
        (tmp_path / kind / "c").rmdir()
    shutil.rmtree(tmp_path / "sample")
    path = tmp_path / "latent/00000000.npy"
    np.save(path, np.load(path)[None])
    clips = LatentClips(root=str(tmp_path), frames=1)
    assert len(clips) == 4 and clips[0].keys() == {"gt", "lq", "latent"}
    assert sorted(clips[k]["latent"].mean().item() for k in range(4)) == pytest.approx([0, 0.1, 0.2, 0.3])


def test_a_list_chooses_clips_and_short_ones_are_named(folder, caplog):
    caplog.set_level(logging.INFO, "basicsr_deg")
    (folder / "meta.txt").write_text("c2 6 (16,16,3)\nc0 6 (16,16,3)\n")
    assert len(LatentClips(root=str(folder), frames=2, meta=str(folder / "meta.txt"))) == 2
    write_latent_clip(folder, "short", content(count=3))
    assert len(LatentClips(root=str(folder), frames=4)) == 3
    assert "left out: short (3)" in caplog.text
    with pytest.raises(ValueError, match="less than 7 frames"):
        len(LatentClips(root=str(folder), frames=7))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "latent"), "without a folder latent or latents"),
        (lambda root: shutil.rmtree(root / "latent/c1"), "dataroot_lt: got no clip c1"),
        (lambda root: (root / "latent/c1/00000003.npy").unlink(), "has 5 frames, the sharp clip 6; 00000003"),
        (lambda root: (root / "lq/c2/00000003.png").unlink(), "dataroot_lq: .*has 5 frames"),
        (lambda root: [shutil.rmtree(path) for path in (root / "gt").iterdir()], "dataroot_gt: .*without clips"),
    ],
)
def test_what_is_missing_is_named_before_any_item(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        len(LatentClips(root=str(folder), frames=2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (b"no latent", "not a readable latent"),
        (np.zeros((4, 4)), "expected .c, h, w."),
        (np.full((4, 4, 4), np.nan), "finite"),
        (np.zeros((4, 4, 4), int), "finite"),
        (np.zeros((4, 3, 4)), "latents of 4x3 for frames of 16x16"),
    ],
)
def test_bad_latents_are_named(tmp_path, latent, message):
    write_latent_clip(tmp_path, "c", content(count=1))
    path = tmp_path / "latent/c/00000000.npy"
    path.write_bytes(latent) if isinstance(latent, bytes) else np.save(path, latent)
    with pytest.raises(ValueError, match=f"c.*{message}"):
        LatentClips(root=str(tmp_path), frames=1)[0]


def test_roots_are_given_in_one_way(tmp_path):
    for roots in ({}, {"root": "a", "dataroot_gt": "b"}, {"dataroot_gt": "b", "dataroot_lq": "c", "dataroot_sp": "d"}):
        with pytest.raises(ValueError, match="either root, or dataroot_gt, dataroot_lq and dataroot_lt"):
            LatentClips(frames=1, **roots)
    with pytest.raises(ValueError, match="nowhere.*is not there"):
        len(LatentClips(frames=1, root=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="frames=0"):
        LatentClips(frames=0, root="a")


def test_a_clip_is_there_whole_or_not_at_all(tmp_path):
    class Broken(Exception):
        pass

    def frames():
        yield content()["gt"][0]
        raise Broken

    with pytest.raises(Broken):
        write_latent_clip(tmp_path, "c", {"gt": content()["gt"], "lq": frames()})
    assert not is_written(tmp_path, "c", ["gt"]) and len(list(tmp_path.rglob(".c.partial-*"))) == 2
    remove_partial(tmp_path)
    assert not list(tmp_path.rglob(".c.partial-*"))
    write_latent_clip(tmp_path, "c", content(count=3))
    write_latent_clip(tmp_path, "c", content(count=2))
    assert is_written(tmp_path, "c", ["gt", "lq", "sample", "latent"])
    assert len(list((tmp_path / "latent/c").iterdir())) == 2
