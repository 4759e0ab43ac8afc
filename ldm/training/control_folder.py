"""What a training of a control network leaves: a `controlnet/` folder as diffusers reads and writes it."""

import json
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer
from safetensors.torch import save_file

from ldm.files import partial
from ldm.nets.configurations import control_config
from ldm.nets.control import TemporalConditioning

BUILDABLE = ("ControlFolder",)  # by configurations
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def write_control_folder(control: TemporalConditioning, folder: Path, *, half: bool = False) -> None:
    """Write config.json and the weights, in float32 or float16; each file is there whole or not at all. OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in control.state_dict().items()}
    if half:
        state = {name: value.half() for name, value in state.items()}
    with partial(folder / WEIGHTS) as temporary:
        save_file(state, temporary, {"format": "pt"})
    with partial(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(control_config(control), indent=2) + "\n", encoding="utf-8")


class ControlFolder(Callback):
    """Writes the trained control network, `module.controlnet`, when a training ends.

    Args:
        folder: its parent; the files go into `controlnet/` there, where inference looks for them. The released training
            leaves its last weights in the parent itself, where its own test script does not find them.
        half: in float16.
    """

    def __init__(self, folder: str, *, half: bool = False) -> None:
        self.folder, self.half = Path(folder) / "controlnet", half

    def on_fit_start(self, trainer: Trainer, _module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)  # shows before the first step where nothing can be written

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_control_folder(module.controlnet, self.folder, half=self.half)
