"""Captions of training clips, from text files, as token ids."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

BUILDABLE = ("CaptionedClips",)

_LONGEST = 65536  # characters of a caption file that are read


class CaptionedClips(Dataset):
    """Add `tokens` (length,), the token ids of its caption, to each item of a data set of clips.

    Args:
        clips: data set with a method `name(index)`, such as `basicsr_deg.training_clips.TrainingClips`.
        folder: contains NAME.txt for a clip NAME (with or without the suffix of a video), whose first line is the
            caption. A clip without a file has the empty caption.
        tokenizer: texts -> (n, length) int64, such as `ldm.nets.tokenizer.ClipTokenizer`.
        ending: text appended to every non-empty caption, after a space.
    Raises:
        ValueError: the folder does not exist or contains no text file.
    """

    def __init__(
        self, clips: Dataset, *, folder: str, tokenizer: Callable[[Sequence[str]], Tensor], ending: str = ""
    ) -> None:
        self.clips, self.folder, self.tokenizer, self.ending = clips, Path(folder), tokenizer, ending
        if not any(self.folder.glob("*.txt")):
            raise ValueError(f"got captions {folder}, expected a folder of CLIP.txt files")

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        text = self.caption(self.clips.name(index))
        return {**self.clips[index], "tokens": self.tokenizer([text])[0]}

    def caption(self, name: str) -> str:
        """Caption of the clip of this name, or "". Raises ValueError if its file is not UTF-8 text."""
        clip = Path(name).name
        for file in (self.folder / f"{clip}.txt", self.folder / f"{Path(clip).stem}.txt"):
            if file.is_file():
                return self._first_line(file)
        return ""

    def _first_line(self, file: Path) -> str:
        try:
            with file.open(encoding="utf-8") as opened:
                text = opened.readline(_LONGEST).strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not a text in UTF-8; save it again or remove it") from error
        return f"{text} {self.ending}".strip() if text else ""
