"""Write a one-frame version of an output, to find errors of encoders and containers before any work is done."""

import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ldm.video.formats import Format
from ldm.video.joining import join_videos
from ldm.video.source import Source, VideoError
from ldm.video.writing import write_part

DURATION = Fraction(2)  # seconds of sound and subtitles that are written


def dry_run_output(source: Source, format: Format, output, *, start=0):
    """Write one black frame with the other streams of the source to a temporary file in the format of an output.

    Args:
        output: the final path, for messages; nothing is written there.
        start: number of the first frame of the source.

    Raises:
        VideoError: the encoder refuses the size; the container cannot be written or closed with these streams.
    """
    if not format.is_video:
        return
    with tempfile.TemporaryDirectory(prefix="dry-run-") as folder:
        part, whole = Path(folder) / "part", Path(folder) / "whole"
        try:
            write_part(part, [np.zeros((*format.size, format.channels), format.dtype)], format)
            span = (start, start + 1)
            join_videos([part], whole, source, format, span, metadata={}, duration=DURATION)
        except VideoError as error:
            raise VideoError(f"{output}: cannot be written; {str(error).removeprefix(f'{part}: ')}") from None
        except (OSError, av.FFmpegError, ValueError) as error:
            what = f"{format.codec} of {format.size[1]}x{format.size[0]} in {format.container}"
            reason = getattr(error, "strerror", None) or error
            raise VideoError(f"{output}: {what} with these streams cannot be written ({reason})") from None
