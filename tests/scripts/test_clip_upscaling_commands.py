"""Upscale-A-Video by the commands: a stopped run resumes, captions reach the record, the released flags work."""

import gzip
import json
import shutil
from types import SimpleNamespace

import pytest

from ldm import config, video
from ldm.engine.assemble import ROOT, find_weights, load_method, read_settings
from ldm.engine.captions import caption_beside, captioned
from ldm.engine.jobs import Job
from ldm.engine.parts import Task
from scripts import inference_upscale_a_video, upscale
from scripts.upscale_jobs import choose_settings
from tests.methods import upscale_toy
from tests.scripts import toy

FRAMES = 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return upscale_toy.write_weights(tmp_path_factory.mktemp("uav") / "weights")


@pytest.mark.slow  # three runs of the command
def test_a_stopped_run_resumes_to_the_same_bytes_and_records_its_words(tmp_path, weights, monkeypatch, capfd):
    clip = toy.make_clip(tmp_path / "clip.mp4", FRAMES)
    (tmp_path / "clip.txt").write_text("\ufeffa dog\r\na boat\n", encoding="utf-8")
    words = ["-i", str(clip), "--weights", str(weights), "--device", "cpu", "--upscale", "2", "--save_every", "2"]
    words += ["--memory", "4G", "--inference_steps", "1", "--propagation_steps", "0", "--negative_prompt", "no: [x"]
    assert upscale.main([*words, "-o", str(tmp_path / "undisturbed.mp4")]) == 0
    assert "predicted peak" in capfd.readouterr().out
    write, parts = video.write_part, []

    def stop(path, frames, *args, **options):
        parts.append(path)
        if len(parts) == 2:
            raise KeyboardInterrupt
        return write(path, frames, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(video, "write_part", stop)
        assert upscale.main([*words, "-o", str(tmp_path / "out.mp4")]) == 130
    assert upscale.main([*words, "-o", str(tmp_path / "out.mp4")]) == 0
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "undisturbed.mp4").read_bytes()
    record = json.loads((tmp_path / "out.mp4.json").read_text())
    assert record["arguments"]["prompt"] == "a dog\na boat" and record["frames"] == FRAMES
    used = record["settings"]["method"]["params"]
    assert used["words"]["params"]["negative_prompt"] == "no: [x"
    assert (
        used["words"]["params"]["tokenizer"]["params"]["merges"]["params"]["path"] == "assets/text/clip_merges.txt.gz"
    )
    assert set(record["weights"]) == {"unet_video", "vae_3d", "text_encoder"}


def test_captions_are_found_beside_files_and_folders(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames.txt").write_text("a cat")
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.mp4.txt").write_text(" a dog \n")
    assert caption_beside(tmp_path / "frames") == "a cat" and caption_beside(tmp_path / "a.mp4") == "a dog"
    assert caption_beside(tmp_path / "b.mp4") is None
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"b\.txt: got no UTF-8 text"):
        caption_beside(tmp_path / "b.mp4")


def test_the_caption_of_the_truth_serves_a_degraded_clip(tmp_path, weights):
    model = SimpleNamespace(settings=read_settings(find_weights(weights)))
    for name in ("lq", "gt"):
        (tmp_path / name / "frames").mkdir(parents=True)
    truth = tmp_path / "gt" / "frames"
    job = Job(tmp_path / "lq" / "frames", tmp_path / "out", Task(source=None, format=None))
    assert captioned(job, model, truth).task.prompt is None
    (tmp_path / "gt" / "frames.txt").write_text("a boat")
    assert captioned(job, model, truth).task.prompt == "a boat"
    (tmp_path / "lq" / "frames.txt").write_text("a dog")
    assert captioned(job, model, truth).task.prompt == "a dog"


TEXTS = ("${x}", "${oc.env:HOME} a: [b] #c, 'd'", "'a'", "null", "", "  ", "a=b\n{c}\\${", "100 % %s", "\ud800")


@pytest.mark.parametrize("text", TEXTS)
def test_prompts_are_data(weights, text):
    """Of both commands: what the text tower gets is the text itself."""
    args = upscale.arguments(["--weights", str(weights), f"--prompt={text}", f"--negative_prompt={text}"])
    used = words_of(weights, args)
    assert used.prompt == text and used.negative_prompt == text
    released = inference_upscale_a_video.arguments([f"--a_prompt={text}", f"--n_prompt={text}"])
    used = words_of(weights, inference_upscale_a_video.translate(released, scale=4))
    assert used.prompt is None and used.ending == text and used.negative_prompt == text
    assert used.prompts("a cat") == [f"a cat{text}"]


def words_of(weights, args):
    node = choose_settings(find_weights(weights), args)["method"]["params"]["words"]
    node["params"]["tokenizer"] = None
    return config.instantiate(node)


def test_a_prompt_that_is_given_is_not_replaced_by_a_caption(tmp_path, weights):
    (tmp_path / "clip.txt").write_text("${a} 'cat' = [null]\n\n${oc.env:HOME}\n")
    job = Job(tmp_path / "clip.mp4", tmp_path / "out", Task(source=None, format=None))
    for words, expected in (([], "${a} 'cat' = [null]\n\n${oc.env:HOME}"), (["--prompt", ""], None)):
        args = upscale.arguments(["--weights", str(weights), *words])
        model = SimpleNamespace(settings=choose_settings(find_weights(weights), args))
        assert captioned(job, model).task.prompt == expected


def test_weights_in_a_folder_of_any_name(tmp_path, weights):
    """Its name becomes part of the path of the merges."""
    folder = tmp_path / "${x} 'a' = [b]"
    shutil.copytree(weights, folder)
    (folder / "tokenizer").mkdir()
    with gzip.open(ROOT / "assets" / "text" / "clip_merges.txt.gz") as merges:
        (folder / "tokenizer" / "merges.txt").write_bytes(merges.read())
    assert load_method(folder).words.tokenizer(["a"]).shape == (1, 77)


@pytest.mark.slow  # a run of the command
def test_words_of_the_record_are_those_that_were_given(tmp_path, weights, capfd):
    clip = toy.make_clip(tmp_path / "clip.mp4", 1)
    (tmp_path / "clip.txt").write_text("${caption}")
    words = ["-i", str(clip), "-o", str(tmp_path / "out"), "--pretrained_model_path", str(weights), "-s", "1"]
    words += ["--device", "cpu", "--a_prompt", "${x} = '", "--n_prompt", "\udcff\n[${oc.env:HOME}"]
    assert inference_upscale_a_video.main(words) == 0, capfd.readouterr().err
    record = json.loads((tmp_path / "out" / "video" / "clip_n120_g6_s1.mp4.json").read_text())
    used = record["settings"]["method"]["params"]["words"]["params"]
    assert (used["ending"], used["negative_prompt"]) == ("${x} = '", "\udcff\n[${oc.env:HOME}")
    assert record["arguments"]["prompt"] == "${caption}"


def test_the_released_flags(tmp_path, weights, capfd):
    clip = toy.make_clip(tmp_path / "in" / "clip.mp4", 2)
    words = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--pretrained_model_path", str(weights)]
    words += ["-s", "2", "-n", "20", "-p", "1", "--use_video_vae", "--color_fix", "AdaIn", "--device", "cpu"]
    assert inference_upscale_a_video.main(words) == 2
    error = capfd.readouterr().err
    assert "clip.txt" in error and "--no_llava" in error and error.count("\n") == 1
    for wrong, said in ((["-p", "2"], "propagation steps [2]"), (["--save_suffix", "../x"], "--save_suffix")):
        assert inference_upscale_a_video.main([*words, "--no_llava", *wrong]) == 2
        error = capfd.readouterr().err
        assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert inference_upscale_a_video.main([*words, "--no_llava"]) == 0
    output = tmp_path / "out" / "video" / "clip_n20_g6_s2_p1.mp4"
    source = video.probe(clip)
    assert (video.probe(output).height, video.probe(output).width) == (4 * source.height, 4 * source.width)
    record = json.loads(output.with_name(f"{output.name}.json").read_text())
    assert record["arguments"]["seed"] == 10 and "vae_video" in record["weights"]
    params = record["settings"]["method"]["params"]
    assert params["words"]["params"]["separator"] == "" and params["sampling"]["params"]["propagation_steps"] == "1"


@pytest.mark.slow  # two runs of the command
def test_grey_levels_are_cut_off_as_released(tmp_path, weights):
    """Rounding would raise half of them by one."""
    clip = toy.make_clip(tmp_path / "clip.mp4", 1)
    words = ["-i", str(clip), "--weights", str(weights), "--device", "cpu", "--preset", "released", "--upscale", "2"]
    words += ["--inference_steps", "1", "--guidance_scale", "1"]
    for name, more in (("released", []), ("nearest", ["output.rounding=nearest"])):
        assert upscale.main([*words, "-o", str(tmp_path / name), *more]) == 0
    cut, rounded = ((video.read_clip(tmp_path / name)[0] * 255).round() for name in ("released", "nearest"))
    difference = rounded - cut
    assert difference.min() == 0 and difference.max() == 1 and 0.3 < difference.mean() < 0.7


def test_large_frames_keep_their_size(tmp_path):
    """Only where both sides have 1280 pixels or more; others are enlarged by 4."""
    for size, scale in (((1280, 1280), 1), ((1278, 1400), 4)):
        clip = toy.make_clip(tmp_path / "clip.mp4", 1, size=size)
        assert inference_upscale_a_video.scale_of(Job(clip, tmp_path / "out.mp4")) == scale
