"""The work behind the page: what an upload may be, whose turn it is, and what a visitor is shown."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldm import video
from ldm.engine.assemble import EMBEDDED
from ldm.engine.jobs import Job, JobOptions
from ldm.engine.parts import Task
from ldm.engine.restoring import Cancelled
from scripts import demo, demo_jobs
from scripts.demo_jobs import JobProgress, JobRequest, Limits, Restorer

LIMITS = Limits(megabytes=1, seconds=2, pixels=64 * 48)


def write_clip(path, frames=4, size=(32, 48)):
    picture = torch.rand(3, size[0], size[1] + 2 * frames, generator=torch.Generator().manual_seed(0))
    with video.open_writer(path, size=size) as writer:
        for number in range(frames):
            writer.write(picture[:, :, 2 * number : 2 * number + size[1]])
    return path


@pytest.fixture()
def restorer(tmp_path):
    (tmp_path / "work").mkdir()
    return Restorer(tmp_path / "work", {"embedded": EMBEDDED}, "cpu", None, LIMITS)


def refused(restorer, upload):
    with pytest.raises(ValueError) as caught, demo_jobs.plain_errors(upload):
        restorer.check(restorer.receive(upload))
    return str(caught.value)


def test_uploads_are_limited_and_take_names_of_our_own(restorer, tmp_path):
    clip = write_clip(tmp_path / "-rf $(x) ;.mp4")
    kept = restorer.receive(clip)
    assert kept.parent == restorer.folder and kept.name.removesuffix(".mp4").isalnum()
    assert restorer.check(kept).frames == 4 and restorer.receive(clip) == kept
    assert "expected a video or a picture; drop one" in refused_none(restorer)
    (tmp_path / "x.sh").write_text("echo")
    assert "'.sh'" in refused(restorer, tmp_path / "x.sh")
    (tmp_path / "big.mp4").write_bytes(b"\0" * 1_000_001)
    assert "more than 1 MB" in refused(restorer, tmp_path / "big.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    said = refused(restorer, tmp_path / "broken.mp4")
    assert "not a readable video" in said and str(tmp_path) not in said and "\n" not in said
    assert "pixels" in refused(restorer, write_clip(tmp_path / "wide.mp4", frames=1, size=(64, 64)))
    assert "more than 2 s" in refused(restorer, write_clip(tmp_path / "long.mp4", frames=60))


def refused_none(restorer):
    with pytest.raises(ValueError) as caught:
        restorer.receive(None)
    return str(caught.value)


def test_one_job_at_a_time_and_others_know_their_place(restorer):
    inside, places, order = threading.Event(), [JobProgress() for _ in range(3)], []

    def work(number):
        with restorer.waiting(places[number], lambda: False):
            order.append(number)
            inside.wait(10)

    threads = []
    for number in range(3):
        threads.append(threading.Thread(target=work, args=(number,)))
        threads[-1].start()
        while len(restorer.line) <= number:
            pass
    while places[2].place != 2:
        pass
    assert "2 jobs before this one" in places[2].text() and order == [0]
    with pytest.raises(Cancelled), restorer.waiting(JobProgress(), lambda: True):
        pass
    inside.set()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2] and not restorer.line


def test_too_many_waiting_jobs_are_refused(restorer):
    restorer.line += [object()] * 31
    with pytest.raises(ValueError, match="try again later"), restorer.waiting(JobProgress(), lambda: False):
        pass


def test_progress_is_told_with_the_time_that_is_left():
    progress = JobProgress(began=JobProgress().began - 10)
    assert progress.text() == "Working: starting, 10 s"
    progress.report("sampling", 2, 4)
    assert progress.text() == "Working: 50 %, 10 s, about 10 s left: sampling 2/4"


@pytest.mark.slow  # runs the model twice
def test_a_clip_is_previewed_cancelled_resumed_and_shown(restorer, tmp_path):
    kept = restorer.receive(write_clip(tmp_path / "clip.mp4", frames=4))
    wanted = JobRequest("embedded", "teacher", JobOptions(upscale=2.0, overwrite=True, save_every=2))
    seen = []
    progress = JobProgress()
    progress.report = lambda *call: seen.append(call)
    with pytest.raises(Cancelled):
        restorer.run(kept, wanted, progress, lambda: ("sampling", 3) in [call[:2] for call in seen])
    result = restorer.run(kept, wanted, JobProgress(), lambda: False)
    assert result.output.is_file() and result.record["frames"] == 4 and "peak memory" in result.text
    assert str(tmp_path) not in json.dumps(result.record)
    markup = demo_jobs.comparison_html(result.job, 99)
    assert 'alt="result, frame 3"' in markup and markup.count("data:image/webp") == 2
    assert demo_jobs.profile_html(result.job).count("<figure>") == 2
    again = restorer.run(kept, wanted, JobProgress(), lambda: True)
    assert again.output == result.output  # made before, so nothing runs that could be stopped


def test_a_preview_has_an_estimate_for_the_whole_clip(restorer, tmp_path):
    job = Job(tmp_path / "clip.mp4", tmp_path / "out.mp4", options=JobOptions(preview=2.0), whole_clip=500)
    clip = video.probe(write_clip(tmp_path / "clip.mp4"))
    chosen = video.choose_format(clip, tmp_path / "out.mp4", size=(64, 96))
    job = replace(job, task=Task(clip, chosen))
    record = {"seconds": {"this run": 100.0}, "frames": 50, "memory": {"peak": 2e9}}
    text = demo_jobs.summary(job, record)
    assert text.startswith("50 frames of 96x64 in 100.0 s (2.00 s a frame), peak memory 2.00 GB")
    assert text.endswith("all 500 frames would take about 1000 s and the same memory")


# What the handlers of the page need of Gradio, so that they are tested without it.
GRADIO = SimpleNamespace(skip=lambda: "same", Slider=dict, Column=dict, Dropdown=dict, Textbox=dict)
VISITOR = SimpleNamespace(session_hash="a")


@pytest.fixture()
def page(restorer):
    return demo.Page(GRADIO, restorer)


def results(page, upload, *, session="a"):
    """The updates of the page after a visitor pressed Restore."""
    return list(page.restore(upload, "embedded", "none", 2, 1, "", SimpleNamespace(session_hash=session)))


def job_of(path, wanted):
    """A finished job, whose output is as large as its input."""
    clip, output = video.probe(path), write_clip(path.with_name("output.mp4"))
    chosen = video.choose_format(clip, output, size=(32, 48))
    return Job(path, output, options=wanted.options, task=Task(clip, chosen, stop=clip.frames))


def test_the_page_shows_progress_and_the_result_of_a_run(page, tmp_path, monkeypatch):
    def run(path, wanted, progress, stop):
        progress.report("sampling", 1, 2)
        progress.lines.append("Memory plan: tiles")
        while not seen:
            pass
        job = job_of(path, wanted)
        return demo_jobs.Result(job.output, {"frames": 4}, "4 frames", job)

    monkeypatch.setattr(page.restorer, "run", run)
    monkeypatch.setattr(demo, "EVERY", 0.01)
    seen = []
    for update in page.restore(str(write_clip(tmp_path / "clip.mp4")), "embedded", "none", None, None, "", VISITOR):
        seen.append(update)
    assert seen[0][0].startswith("Working: 50 %")
    assert seen[0][1:] == ("Memory plan: tiles", *["same"] * 6)
    status, plan, compared, frame, profile, files, record, box = seen[-1]
    assert (status, plan, record, box) == ("**Done:** 4 frames", "Memory plan: tiles", {"frames": 4}, {"visible": True})
    assert 'alt="result, frame 1"' in compared and frame["maximum"] == 3 and profile.count("<figure>") == 2
    assert [Path(name).is_file() for name in files] == [True, True] and json.loads(Path(files[1]).read_text()) == record
    assert 'alt="result, frame 2"' in page.show_frame(2, VISITOR) and page.cancel(VISITOR) == "Nothing to cancel."
    page.leave(VISITOR)
    assert page.show_frame(2, VISITOR) == "same"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Cancelled("cancelled"), "**Cancelled.** Finished parts are kept"),
        (ValueError("got x\nand more"), "**Failed:** got x"),
        (RuntimeError("secret"), "**Failed** by a mistake in the program"),
    ],
)
def test_the_page_says_what_went_wrong_in_one_line(page, tmp_path, monkeypatch, error, said):
    def run(*words):
        raise error

    monkeypatch.setattr(page.restorer, "run", run)
    status = results(page, str(write_clip(tmp_path / "clip.mp4")))[-1][0]
    assert status.startswith(said) and "secret" not in status and "\n" not in status


def test_a_visitor_has_one_job_at_a_time(page, tmp_path, monkeypatch):
    page.stops["a"] = threading.Event()
    clip = str(write_clip(tmp_path / "clip.mp4"))
    assert [update[0] for update in results(page, clip)] == [
        "**Refused:** your last job has not ended; wait for it, or cancel it."
    ]
    assert not page.stops["a"].is_set()
    assert page.cancel(VISITOR).startswith("Cancelling") and page.stops["a"].is_set()
    assert results(page, None, session="b")[0][0] == "**Refused:** got no file, expected a video or a picture; drop one"
    assert "b" not in page.stops


def test_an_upload_is_described_and_a_model_offers_its_presets(page, tmp_path):
    assert page.describe(None) == ""
    assert page.describe(str(write_clip(tmp_path / "clip.mp4"))) == "48x32, 4 frames, 25 a second"
    presets, prompt = page.choose("embedded")
    assert presets["choices"][0] == "none" and prompt == {"visible": False}


def test_the_examples_are_the_demo_clip_and_its_first_frame(tmp_path):
    clip, picture = demo_jobs.example_files(demo.EXAMPLE, tmp_path / "examples")
    assert clip == demo.EXAMPLE and video.probe(picture).height == video.probe(clip).height


def test_two_models_of_one_name_are_refused(tmp_path):
    names = demo_jobs.model_names([tmp_path / "a" / "x", tmp_path / "y"])
    shipped = list(demo_jobs.model_names([]))
    assert shipped == ["embedded", "stablevsr_tiny", "upscale_a_video_tiny"]
    assert list(names) == [*shipped, "x", "y"]
    with pytest.raises(ValueError, match="second model named 'x'"):
        demo_jobs.model_names([tmp_path / "a" / "x", tmp_path / "b" / "x"])


def test_what_a_visitor_sees_of_a_record_names_no_path():
    record = {"input": {"path": "/x/y"}, "weights": {"unet": {"path": "/x/w", "sha256": "00"}}, "frames": 3}
    assert demo_jobs.shown_record(record) == {"frames": 3, "weights": {"unet": "00"}}


def test_an_unknown_model_is_named(restorer):
    with pytest.raises(ValueError, match="expected one of embedded"):
        restorer.model("../../etc", "none")


def test_it_listens_on_this_machine_alone_unless_told_otherwise():
    args = demo.arguments([])
    assert (args.host, args.port) == ("127.0.0.1", 7860)
    assert demo.arguments(["--host", "0.0.0.0", "--most_seconds", "5"]).most_seconds == 5
