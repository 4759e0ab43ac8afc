"""A web page for trying the models: upload a video or a picture, see a preview, compare, and download the result.

python scripts/demo.py --port 7860
python scripts/demo.py --weights weights/mgldvsr --memory 12G

Needs the extra `demo`. It listens on 127.0.0.1 unless --host names another address, and loads nothing from elsewhere.
"""

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from ldm.engine.jobs import JobOptions
from ldm.engine.plan import parse_bytes
from ldm.engine.restoring import Cancelled
from ldm.paths import product_folder
from scripts.command import DEVICE, Parser, exit_status, non_negative_int, positive_int, tell
from scripts.demo_jobs import (
    PLAIN,
    PREVIEW,
    SUFFIXES,
    JobProgress,
    JobRequest,
    Limits,
    Restorer,
    comparison_html,
    example_files,
    model_names,
    plain_errors,
    preset_choices,
    profile_html,
    takes_prompt,
)

PROGRAM = "demo.py"
EXAMPLE = product_folder() / "assets" / "demo" / "clip.mp4"
LARGEST_SEED = 2**32 - 1
WAITING = 36  # jobs that may run and wait; the restorer runs one at a time
EVERY = 0.4  # seconds between two reports of progress
HOURS = 3600  # seconds after which files of Gradio's own are removed
TITLE = f"# Video super-resolution\nDrop a video or a picture, look at a preview of {PREVIEW:g} seconds, restore it."
CSS = """
.compare { position: relative; max-width: 1280px; }
.compare img { display: block; width: 100%; margin: 0; }
.compare .before { position: absolute; inset: 0; height: 100%; clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.compare i { position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; background: #fff; }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
.compare:focus-within { outline: 3px solid #2563eb; outline-offset: 2px; }
.profile { display: flex; flex-wrap: wrap; gap: 8px; }
.profile figure { flex: 1 1 300px; margin: 0; }
.profile img { width: 100%; image-rendering: pixelated; }
.compare + p, .profile + p, .profile figcaption { margin-top: 6px; }
"""
log = logging.getLogger(PROGRAM)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default: 127.0.0.1)")
    add("--port", type=non_negative_int, default=7860, help="port to listen on (default: 7860)")
    add("--weights", nargs="+", type=Path, default=[], metavar="FOLDER", help="folders of weights to offer, too")
    add("--device", help=DEVICE)
    add("--memory", metavar="SIZE", help="memory to use, such as 12G (default: all free memory)")
    limits = Limits()
    add("--most_megabytes", type=positive_int, default=limits.megabytes, help="of an upload (default: 500)")
    add("--most_seconds", type=positive_int, default=int(limits.seconds), help="of a video (default: 60)")
    add("--most_pixels", type=positive_int, default=limits.pixels, help="of a frame (default: 2100000)")
    return parser.parse_args(words)


class Page:
    """The page's handlers: they turn choices into jobs, and jobs into updates of the page."""

    def __init__(self, gradio: Any, restorer: Restorer) -> None:
        self.gradio, self.restorer = gradio, restorer
        self.stops: dict[str, threading.Event] = {}  # by session
        self.jobs: dict[str, Any] = {}  # the last finished job of a session

    def choose(self, name: str):
        """Return updates for a chosen model: its presets, and whether it takes a prompt."""
        model = self.restorer.model(name, PLAIN)
        presets = self.gradio.Dropdown(choices=preset_choices(model), value=PLAIN)
        return presets, self.gradio.Textbox(visible=takes_prompt(model))

    def describe(self, upload: str | None) -> str:
        """Describe an upload, or the reason why it is refused."""
        if upload is None:
            return ""
        path = Path(upload)
        try:
            with plain_errors(path):
                path = self.restorer.receive(upload)
                source = self.restorer.check(path)
        except ValueError as error:
            return f"**Refused:** {error}"
        size, count = f"{source.width}x{source.height}", source.frames or 1
        return f"{size}, {count} frames, {float(source.rate):.4g} a second" if count > 1 else f"{size}, one picture"

    def restore(self, upload, name, preset, upscale, seed, prompt, request, *, preview=None) -> Iterator[tuple]:
        """Restore an upload, or its first `preview` seconds; yields the updates of `work`."""
        memory, upscale, seed = self.restorer.memory, float(upscale or 4), int(seed or 0)  # None: an emptied field
        prompt = (prompt or "").strip() or None
        options = JobOptions(upscale, seed, memory=memory, preview=preview, overwrite=True, prompt=prompt)
        yield from self.work(upload, JobRequest(name, preset, options), request)

    def work(self, upload, wanted: JobRequest, request) -> Iterator[tuple]:
        """Run a visitor's job, one at a time; yields updates of the eight outputs of the page.

        They are status, plan, comparison, frame, profile, files, settings and the box around the last three.
        """
        same, stop = (self.gradio.skip(),) * 6, threading.Event()
        if self.stops.setdefault(request.session_hash, stop) is not stop:
            yield ("**Refused:** your last job has not ended; wait for it, or cancel it.", self.gradio.skip(), *same)
            return
        path = Path(upload or "nothing")
        try:
            with plain_errors(path):
                path = self.restorer.receive(upload)
                self.restorer.check(path)
            yield from self.steps(path, wanted, stop, request)
        except ValueError as error:
            yield (f"**Refused:** {error}", "", *same)
        finally:
            stop.set()  # the visitor may have left
            self.stops.pop(request.session_hash, None)

    def steps(self, path: Path, wanted: JobRequest, stop: threading.Event, request) -> Iterator[tuple]:
        """Restore in another thread; yields the updates of `work`."""
        progress, outcome, same = JobProgress(), [], (self.gradio.skip(),) * 6

        def run() -> None:
            try:
                with plain_errors(path):
                    outcome.append(self.restorer.run(path, wanted, progress, stop.is_set))
            except Exception as error:
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(EVERY)
            yield (progress.text(), "\n\n".join(progress.lines), *same)
        plan, (result,) = "\n\n".join(progress.lines), outcome
        if isinstance(result, Exception):
            yield (self.failure(result), plan, *same)
            return
        self.jobs[request.session_hash] = result.job
        yield (f"**Done:** {result.text}", plan, *self.shown(result))

    def failure(self, error: Exception) -> str:
        """Return the message about an error; an unexpected one is logged with its traceback."""
        if isinstance(error, Cancelled):
            return "**Cancelled.** Finished parts are kept: Restore continues from there."
        if isinstance(error, ValueError):
            return f"**Failed:** {error}"
        log.error("a job failed", exc_info=error)
        return "**Failed** by a mistake in the program; its terminal has the details."

    def shown(self, result) -> tuple:
        """Return the updates of the outputs after status and plan for a result."""
        last = max((result.job.task.frames or 1) - 1, 0)
        settings = result.output.with_name(f"{result.output.stem}.settings.json")
        settings.write_text(json.dumps(result.record, indent=2), encoding="utf-8")
        frame = self.gradio.Slider(minimum=0, maximum=max(last, 1), value=last // 2, visible=last > 0)
        files = [str(result.output), str(settings)]
        compared, profile = comparison_html(result.job, last // 2), profile_html(result.job)
        return compared, frame, profile, files, result.record, self.gradio.Column(visible=True)

    def show_frame(self, number: float, request):
        """Return the comparison of another frame of the visitor's last result."""
        job = self.jobs.get(request.session_hash)
        return self.gradio.skip() if job is None else comparison_html(job, int(number or 0))

    def cancel(self, request) -> str:
        """Stop the job of a visitor at the next call of a network."""
        stop = self.stops.get(request.session_hash)
        if stop is None:
            return "Nothing to cancel."
        stop.set()
        return "Cancelling, at the next step of the model ..."

    def leave(self, request) -> None:
        """Stop the job of a visitor who closed the page."""
        self.jobs.pop(request.session_hash, None)
        if stop := self.stops.pop(request.session_hash, None):
            stop.set()


def build(gradio: Any, restorer: Restorer, examples: list[Path]):
    """Return the page as Gradio's Blocks."""
    page = Page(gradio, restorer)
    bound = with_request(gradio, page)
    with gradio.Blocks(title="MGLD-VSR", analytics_enabled=False, delete_cache=(HOURS, HOURS)) as blocks:
        gradio.Markdown(TITLE)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=320):
                upload = gradio.File(label="Video or picture", file_types=list(SUFFIXES), elem_id="upload")
                about = gradio.Markdown(elem_id="about")
                gradio.Examples([[str(path)] for path in examples], [upload], label="Examples", elem_id="examples")
                names = list(restorer.models)
                model = gradio.Dropdown(names, value=names[0], label="Model", elem_id="model")
                preset = gradio.Dropdown(preset_choices(restorer.model(names[0], PLAIN)), value=PLAIN, label="Preset")
                upscale = gradio.Slider(1, 4, value=4, step=0.5, label="Enlarge by")
                seed = gradio.Number(42, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)
                prompt = gradio.Textbox(label="What the clip shows", visible=False, max_length=2000)
                with gradio.Row():
                    narrow = {"min_width": 80}  # all three beside each other
                    preview = gradio.Button("Preview", elem_id="preview", **narrow)
                    restore = gradio.Button("Restore", variant="primary", elem_id="restore", **narrow)
                    cancel = gradio.Button("Cancel", variant="stop", elem_id="cancel", **narrow)
            with gradio.Column(scale=2, min_width=320):
                status = gradio.Markdown("Ready.", elem_id="status")
                plan = gradio.Markdown(elem_id="plan")
                compared = gradio.HTML(elem_id="compared")
                frame = gradio.Slider(0, 1, step=1, label="Frame", visible=False, elem_id="frame")
                profile = gradio.HTML(elem_id="profile")
                with gradio.Column(visible=False) as taken:
                    files = gradio.File(label="Result and settings", interactive=False, elem_id="files")
                    with gradio.Accordion("Settings of the result", open=False):
                        settings = gradio.JSON(elem_id="settings")
        chosen = [upload, model, preset, upscale, seed, prompt]
        results = [status, plan, compared, frame, profile, files, settings, taken]
        hidden = {"api_visibility": "private"}
        changes = [upload.change, upload.clear]  # clearing has an event of its own, too
        gradio.on(changes, page.describe, upload, about, trigger_mode="always_last", **hidden)
        model.change(page.choose, model, [preset, prompt], **hidden)
        own = {"concurrency_limit": WAITING, "concurrency_id": "jobs", "show_progress": "hidden", **hidden}
        preview.click(bound["preview"], chosen, results, **own)
        restore.click(bound["restore"], chosen, results, **own)
        cancel.click(bound["cancel"], None, status, queue=False, **hidden)
        moved = {"trigger_mode": "always_last", "show_progress": "hidden", **hidden}  # by pointer, keys or number
        frame.input(bound["show_frame"], frame, compared, **moved)
        blocks.unload(bound["leave"])
    return blocks


def with_request(gradio: Any, page: Page) -> dict[str, Any]:
    """Return the handlers that need the session of a request, a parameter that Gradio recognises by its type."""

    def restorer(preview: float | None):
        def restore(upload, name, preset, upscale, seed, prompt, request: gradio.Request):
            yield from page.restore(upload, name, preset, upscale, seed, prompt, request, preview=preview)

        return restore

    def cancel(request: gradio.Request):
        return page.cancel(request)

    def show_frame(number, request: gradio.Request):
        return page.show_frame(number, request)

    def leave(request: gradio.Request):
        page.leave(request)

    jobs = {"preview": restorer(PREVIEW), "restore": restorer(None)}
    return jobs | {"cancel": cancel, "show_frame": show_frame, "leave": leave}


def import_gradio(folder: Path):
    """Import Gradio with its files in `folder`, without statistics and a server of pages. Raises ValueError."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_SSR_MODE"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ImportError as error:
        install = "in the clone, pip install -c constraints.txt -e '.[demo]'"
        raise ValueError(f"got no package {error.name}, expected the extra demo; {install}") from None
    return gradio


def serve(args: argparse.Namespace, folder: Path) -> None:
    """Build the page and answer until Ctrl-C."""
    gradio = import_gradio(folder)
    limits = Limits(args.most_megabytes, args.most_seconds, args.most_pixels)
    memory = parse_bytes(args.memory) if args.memory else None
    (folder / "work").mkdir()
    restorer = Restorer(folder / "work", model_names(args.weights), args.device, memory, limits)
    for name in restorer.models:
        restorer.model(name, PLAIN)  # so that missing weights are named now
    blocks = build(gradio, restorer, example_files(EXAMPLE, folder / "examples")).queue(max_size=WAITING)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = blocks.launch(
        server_name=args.host,
        server_port=args.port or None,
        max_file_size=f"{args.most_megabytes}mb",
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        theme=theme,
        css=CSS,
    )
    tell(f"{address} (Ctrl-C stops it)")
    while True:
        time.sleep(HOURS)


def run(args: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed then, too
    with tempfile.TemporaryDirectory(prefix="mgld-vsr-demo-") as folder:
        serve(args, Path(folder))


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)), stopped="stopped")


if __name__ == "__main__":
    sys.exit(main())
