"""Read image files of several frames (GIF, WebP, PNG, AVIF, TIFF with pages) with Pillow."""

from fractions import Fraction
from itertools import accumulate

from ldm.video.images import DECODING_ERRORS, frame_count, loaded_pixels, open_image, sample_depth
from ldm.video.pixels import with_channels
from ldm.video.source import DEFAULT_RATE, Source, VideoError, snap_rate

MILLISECOND = Fraction(1, 1000)
MIN_DURATION, DEFAULT_DURATION = 20, 100  # milliseconds: shorter frames of GIFs get the default, as in browsers
MOST_FRAMES = 1_000_000


def probe_animation(path) -> Source:
    """Return the description of an image file of several frames, after reading all of them. Raises VideoError."""
    image, count = open_image(path), frame_count(path)
    if count > MOST_FRAMES:
        raise VideoError(f"{path}: got {count} frames, expected at most {MOST_FRAMES}")
    durations, alpha = [], False
    for pixels, duration in _frames(path, image, count):
        durations.append(duration)
        alpha = alpha or (pixels.shape[2] == 4 and bool(pixels[..., 3].min() < 255))
    notes = ("the image's colour profile (ICC) cannot be carried over",) if image.info.get("icc_profile") else ()
    if image.format in ("PNG", "TIFF") and sample_depth(path, open_image(path)) > 8:
        notes = (*notes, "16 bits per sample become 8 where an image has several frames")
    timing = {}
    if None not in durations:
        times = (0, *accumulate(durations))
        rate = snap_rate(Fraction(1000 * count, times[-1]))
        timing = {"times": times[:-1], "end": times[-1], "time_base": MILLISECOND}
    else:
        rate, notes = DEFAULT_RATE, (*notes, f"its {count} pages are taken for frames, {DEFAULT_RATE} in a second")
    height, width = pixels.shape[:2]
    return Source("animation", path, count, width, height, rate, alpha=alpha, notes=notes, **timing)


def animation_frames(source, start, stop):
    """Yield frames `start` to `stop` of an animation, (h, w, 3 or 4) uint8. Raises VideoError for a damaged one."""
    image = open_image(source.path)
    stop = source.frames if stop is None else min(stop, source.frames)
    for number, (pixels, _) in enumerate(_frames(source.path, image, stop)):
        if pixels.shape[:2] != (source.height, source.width):
            raise VideoError(f"{source.path}: frame {number} has another size than those before; expected one size")
        if number >= start:
            yield with_channels(pixels, 4 if source.alpha else 3)


def _frames(path, image, count):
    """Yield (pixels, duration in milliseconds or None) of the first `count` frames, composed with those before."""
    for number in range(count):
        try:
            image.seek(number)
            if image.format != "TIFF":
                image.load()  # some formats set the duration here
            duration = image.info.get("duration")
        except DECODING_ERRORS:
            raise VideoError(f"{path}: frame {number} of {count} is damaged; replace this file") from None
        if image.format == "TIFF":
            yield loaded_pixels(path, image), None
            continue
        pixels = loaded_pixels(path, image.copy() if image.format == "GIF" else image)
        duration = round(duration or 0)
        too_short = image.format == "GIF" and duration < MIN_DURATION
        yield pixels, DEFAULT_DURATION if too_short else max(duration, 1)
