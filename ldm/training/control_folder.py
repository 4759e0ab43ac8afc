"""Export of a trained control network to a `controlnet/` folder in the format of diffusers."""

import json
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.files import write_atomically
from ldm.nets.configurations import control_config
from ldm.nets.control import TemporalConditioning
from ldm.weights import checkpoint

BUILDABLE = ("ControlFolder",)  # by configurations
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def write_control_folder(control: TemporalConditioning, folder: Path, *, half: bool = False) -> None:
    """Write config.json and the weights, in float32 or float16, each atomically. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in control.state_dict().items()}
    if half:
        state = {name: value.half() for name, value in state.items()}
    checkpoint.save(folder / WEIGHTS, state)
    write_atomically(folder / CONFIG, (json.dumps(control_config(control), indent=2) + "\n").encode())


class ControlFolder(Callback):
    """Write the trained control network, `module.controlnet`, at the end of a training.

    Args:
        folder: parent of the folder `controlnet/` that is written, where inference looks for it. The released training
            writes its last weights into the parent itself, where the released test script does not find them.
        half: whether to write float16.
    """

    def __init__(self, folder: str, *, half: bool = False) -> None:
        self.folder, self.half = Path(folder) / "controlnet", half

    def on_fit_start(self, trainer: Trainer, _module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)  # fails before the first step if the folder is not writable

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_control_folder(module.controlnet, self.folder, half=self.half)
