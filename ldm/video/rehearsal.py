"""A dry run of an output, before any work: all that can fail when a file is written and closed fails here."""

import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ldm.video.formats import Format
from ldm.video.joining import join_videos
from ldm.video.source import Source, VideoError
from ldm.video.writing import write_part

MOMENT = Fraction(2)  # seconds of sound and subtitles that are written


def rehearse_output(source: Source, format: Format, output, *, start=0, metadata=None):
    """Write the beginning of an output into a temporary file: one black frame of its size, and what goes along.

    Args:
        output: where it is to go, for messages; nothing is written there.
        start: the first frame of the source that is taken.
        metadata: as for `join`.

    Raises:
        VideoError: the encoder refuses the size; the container cannot be written or closed with these streams.
    """
    if not format.is_video:
        return
    channels, dtype = (4 if format.alpha else 3), np.uint8 if format.depth == 8 else np.uint16
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        part, whole = Path(folder) / "part", Path(folder) / "whole"
        try:
            write_part(part, [np.zeros((*format.size, channels), dtype)], format)
            span = (start, start + 1)
            join_videos([part], whole, source, format, span, metadata=metadata or {}, moment=MOMENT)
        except VideoError as error:
            raise VideoError(f"{output}: cannot be written; {str(error).removeprefix(f'{part}: ')}") from None
        except (OSError, av.FFmpegError, ValueError) as error:
            what = f"{format.codec} of {format.size[1]}x{format.size[0]} in {format.container}"
            reason = getattr(error, "strerror", None) or error
            raise VideoError(f"{output}: {what} with these streams cannot be written ({reason})") from None
