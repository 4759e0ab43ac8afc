"""Describe for users what an output cannot keep of its source, or keeps in another form."""

from ldm.video.companions import COPY, map_streams
from ldm.video.decoding import ATTACHED_PICTURE, open_container
from ldm.video.formats import SUFFIXES, Format, is_constant_rate
from ldm.video.source import Source

NAMES = {"aac": "AAC", "mov_text": "mov_text", "subrip": "SubRip"}
KINDS = {"subtitle": "subtitles", "attachment": "the attachment", "data": "a data stream"}


def list_omissions(source: Source, format: Format) -> list[str]:
    """Return one line for each property of a source that a format cannot keep, with a remedy if there is one."""
    lines = [*source.notes]
    lines += _lost_pixels(source, format)
    if format.is_video:
        lines += _lost_times(source, format)
    elif source.times is not None and not is_constant_rate(source):
        lines.append("the times of the frames are dropped: images have none")
    if source.kind == "video":
        lines += _lost_streams(source, format) if format.is_video else _lost_by_images(source)
    return lines


def _lost_pixels(source, format):
    where = SUFFIXES.get(format.container, "PNG")
    if source.depth > format.depth:
        lossy = format.codec == "h264" and not format.lossless
        deeper = "choose --codec hevc" if lossy else "choose .mkv with --codec ffv1, or a folder"
        yield f"{source.depth} bits per sample become {format.depth} ({format.codec} in {where}; {deeper})"
    if source.alpha and not format.alpha:
        name = f"{format.codec} in {where}" if format.codec != "h264" else where
        yield f"transparency is dropped: {name} cannot hold it; choose .mov, .mkv or a folder"
    if source.light != format.light:
        yield f"HDR10's display and light level metadata are dropped: {format.codec} has no place; choose --codec hevc"
    if source.sample_aspect != 1 and (not format.is_video or (format.codec, format.container) == ("ffv1", "matroska")):
        aspect = f"{source.sample_aspect.numerator}:{source.sample_aspect.denominator}"
        yield f"the sample aspect ratio {aspect} is dropped: {format.codec} in {where} cannot hold it; choose .mp4"


def _lost_times(source, format):
    if source.times is None:
        return
    if format.container == "matroska" and not is_constant_rate(source):
        rounded = [round(time * source.time_base * 1000) for time in source.times]
        if any(time * source.time_base * 1000 != near for time, near in zip(source.times, rounded, strict=True)):
            yield "the times of the frames are rounded to milliseconds in .mkv; choose .mp4 or .mov"


def _lost_by_images(source):
    for kind, names in (("audio", source.audio), ("subtitles", source.subtitles), ("streams", source.others)):
        if names:
            yield f"{kind} ({', '.join(names)}) cannot go into images; choose a video"
    with open_container(source.path) as container:
        if container.chapters():
            yield "chapters cannot go into images; choose a video"


def _lost_streams(source, format):
    where = SUFFIXES[format.container]
    for mapping in map_streams(source, format.container):
        cover = "the cover picture" if mapping.disposition & ATTACHED_PICTURE else "another video stream"
        kind = cover if mapping.kind == "video" else KINDS.get(mapping.kind, mapping.kind)
        if not mapping.encoder:
            yield f"{kind} ({mapping.codec}) cannot go into {where}: dropped"
        elif mapping.encoder != COPY:
            plain = ", without its styles" if mapping.kind == "subtitle" else ""
            detail = f" ({mapping.detail})" if mapping.detail else ""
            new = f"{NAMES[mapping.encoder]}{detail}{plain}"
            yield f"{kind} ({mapping.codec}) cannot go into {where} unchanged: becomes {new}"
