"""Captions of clips, read from text files beside them, for models with text conditioning."""

from dataclasses import replace
from pathlib import Path

from ldm import config
from ldm.engine.flags import flags_of
from ldm.engine.jobs import Job, Model
from ldm.files import read_text

LONGEST = 1 << 16  # bytes of a caption file


def captioned(job: Job, model: Model, *others: Path) -> Job:
    """Return the job with the caption beside its clip as prompt, unless the job or the model has a prompt.

    `others` are clips of the same content, such as the ground truth; their captions serve if the clip has none. Raises
    ValueError for a file that is too long or no text.
    """
    flag = next((flag for flag in flags_of(model.settings).values() if flag.caption), None)
    if flag is None or job.task.prompt is not None:
        return job
    if any(config.select(model.settings, key) is not None for key in flag.keys):
        return job
    captions = (caption_beside(path) for path in (job.path, *others))
    return replace(job, task=replace(job.task, prompt=next(filter(None, captions), None)))


def caption_beside(clip: Path) -> str | None:
    """Return the caption in clip.txt or clip.mp4.txt beside clip.mp4, or in NAME.txt beside a folder NAME; or None.

    A line for each scene. Raises ValueError for a file that is too long or not UTF-8.
    """
    clip = clip.resolve()
    names = [f"{clip.name}.txt"] if clip.is_dir() else [f"{clip.stem}.txt", f"{clip.name}.txt"]
    file = next((clip.with_name(name) for name in names if clip.with_name(name).is_file()), None)
    if file is None:
        return None
    text = read_text(file, LONGEST).removeprefix("\ufeff")
    return "\n".join(line.strip() for line in text.strip().splitlines()) or None
