"""Random training clips of moving layers, rendered from pictures.

Clips are uint8 RGB; all random numbers come from the `numpy.random.Generator` that is passed in. A clip is a picture
under a smooth camera motion with a few moving cut-outs of other pictures on top. The pictures may be photographs or
come from `procedural_picture`. `size` is (height, width) or one side.
"""

import math

import cv2
import numpy as np

from basicsr_deg.textures import (
    FONTS,
    as_size,
    fill_polygon,
    random_outline,
    random_texture,
    random_words,
    rotated_axes,
    stripes,
)

SUPERSAMPLING = 2  # clips are drawn this many times larger and averaged down, for anti-aliasing


def moving_layers(rng, images, *, frames, size):
    """Render a random clip (T, H, W, 3) uint8 RGB from pictures.

    One picture is the background under a smooth pan, zoom and rotation. Up to three cut-outs of other pictures (shapes,
    words, bars) move independently in front of it. Pictures are never enlarged; edges are anti-aliased by
    supersampling; some clips have motion blur.

    Args:
        rng: `numpy.random.Generator`.
        images: pictures (h, w, 3) uint8 of any size.
        frames: number of frames T.
        size: (height, width) of the clip, or one side.
    Raises:
        ValueError: no images, no frames, or an image that is not (h, w, 3) uint8.
    """
    height, width = as_size(size)
    _check_images(images, frames)
    blurred = rng.random() < 0.15
    times = np.arange(frames)[:, None] + (np.arange(3) / 6 if blurred else np.zeros(1))  # (T, shutter samples)
    canvas = (height * SUPERSAMPLING, width * SUPERSAMPLING)
    layers = [_background(rng, images[rng.integers(len(images))], (height, width), frames)]
    count = int(rng.choice(4, p=(0.25, 0.3, 0.3, 0.15)))
    layers += [_cut_out(rng, images, (height, width), frames) for _ in range(count)]
    clip = np.empty((frames, height, width, 3), np.uint8)
    for number, shutter in enumerate(times):
        samples = [_compose(layers, time, canvas) for time in shutter]
        if blurred:
            samples = [np.mean(samples, axis=0, dtype=np.float32).round().astype(np.uint8)]
        clip[number] = cv2.resize(samples[0], (width, height), interpolation=cv2.INTER_AREA)
    return clip


def _check_images(images, frames):
    if frames < 1 or not images:
        raise ValueError(f"got {len(images)} images and {frames} frames, expected at least one of each")
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"got an image {image.shape} {image.dtype}, expected (h, w, 3) uint8")


def _trajectory(rng, size, frames, calm):
    """Random smooth motion about the middle of the clip: a function from time to a 2x2 matrix and a shift in pixels."""
    fastest = 0.05 * min(size) / calm
    speed = 0.0 if rng.random() < 0.08 else fastest * rng.random() ** 2
    heading = rng.uniform(0, 2 * math.pi)
    velocity = speed * np.array([math.cos(heading), math.sin(heading)])
    bend = rng.normal(0, 0.1, 2) * speed
    shake, beat = rng.normal(0, 0.15, 2) * (rng.random() < 0.3), rng.uniform(0.5, 2.5, 2)
    turn, zoom = (rng.normal(0, amount) * (rng.random() < 0.5) / calm for amount in (0.025, 0.015))

    def at(time):
        t = time - (frames - 1) / 2
        shift = velocity * t + bend * t * abs(t) / max(frames, 2) + shake * np.sin(beat * t)
        grow = math.exp(zoom * t)
        cosine, sine = math.cos(turn * t) * grow, math.sin(turn * t) * grow
        return np.array([[cosine, -sine], [sine, cosine]]), shift

    return at


def _background(rng, image, size, frames):
    """Background layer (picture, start matrix, start shift, trajectory), resampled near the output resolution."""
    room = min(image.shape[0] / size[0], image.shape[1] / size[1])
    step = math.exp(rng.uniform(0, math.log(max(room, 1.0))))  # source pixels per output pixel, never below one
    angle = rng.normal(0, 0.2) if rng.random() < 0.4 else 0.0
    angle += rng.choice((0, math.pi / 2, -math.pi / 2), p=(0.8, 0.1, 0.1))
    window = 1.6 * step * np.array(size[::-1])  # region visible to the camera, with a margin
    if step > SUPERSAMPLING * 1.25:
        image, shrink = _crop(rng, image, window), SUPERSAMPLING / step
        image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        step = SUPERSAMPLING
    else:
        image = _crop(rng, image, window)
    if rng.random() < 0.3:
        image = np.ascontiguousarray(image[:, ::-1])
    scale = SUPERSAMPLING / step
    turned = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return image, turned, np.zeros(2), _trajectory(rng, size, frames, 1.0)


def _crop(rng, image, window):
    """Random crop of a picture, at most `window` (width, height) large."""
    height, width = image.shape[:2]
    box_w, box_h = np.clip(window, 1, (width, height)).astype(int)
    top, left = (int(rng.integers(whole - box + 1)) for whole, box in ((height, box_h), (width, box_w)))
    return np.ascontiguousarray(image[top : top + box_h, left : left + box_w])


def _cut_out(rng, images, size, frames):
    """Foreground layer (RGBA with premultiplied alpha, start matrix, start shift, trajectory)."""
    box = np.maximum(rng.uniform(0.15, 0.7) * min(size) * SUPERSAMPLING * rng.uniform(0.6, 1.2, 2), 8).astype(int)
    if rng.random() < 0.25:
        picture = random_texture(rng, *box)
    else:
        source = images[rng.integers(len(images))]
        reach = rng.uniform(0.5, 1.0) * box[::-1]  # at most one drawn pixel per source pixel and supersample
        picture = cv2.resize(_crop(rng, source, reach), tuple(int(n) for n in box[::-1]), interpolation=cv2.INTER_CUBIC)
    mask = _mask(rng, *(int(n) for n in box))
    if rng.random() < 0.15:
        mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(1, 4))  # out of focus
    rgba = np.dstack([cv2.multiply(picture, cv2.merge([mask] * 3), scale=1 / 255), mask])
    rgba = cv2.copyMakeBorder(rgba, 2, 2, 2, 2, cv2.BORDER_CONSTANT)
    place = rng.uniform(-0.4, 0.4, 2) * size[::-1] * SUPERSAMPLING
    return rgba, np.eye(2), place, _trajectory(rng, size, frames, 0.8)


def _mask(rng, height, width):
    mask = np.zeros((height, width), np.uint8)
    kind = rng.random()
    if kind < 0.6:
        fill_polygon(mask, random_outline(rng, height, width))
    elif kind < 0.85:
        scale = height / 40 * rng.uniform(0.4, 1.0)
        font, thickness = FONTS[rng.integers(len(FONTS))], max(1, int(scale * rng.uniform(1, 3)))
        cv2.putText(mask, random_words(rng, 2), (2, int(height * 0.75)), font, scale, 255, thickness, cv2.LINE_AA)
    else:  # parallel bars: a fence
        u, _ = rotated_axes(rng, height, width)
        mask[:] = (255 * stripes(u, rng.uniform(8, 40), rng.uniform(0.2, 0.6))).astype(np.uint8)
    return mask


def _compose(layers, time, canvas):
    """Draw all layers at one time, back to front: (H*s, W*s, 3) uint8."""
    drawn = None
    for image, start, place, trajectory in layers:
        turn, shift = trajectory(time)
        matrix = turn @ start
        middle = (np.array(canvas[::-1]) - 1) / 2 + place + shift * SUPERSAMPLING
        offset = middle - matrix @ ((np.array(image.shape[1::-1]) - 1) / 2)
        affine = np.column_stack([matrix, offset])
        border = cv2.BORDER_REFLECT_101 if drawn is None else cv2.BORDER_CONSTANT
        warped = cv2.warpAffine(image, affine, canvas[::-1], flags=cv2.INTER_LINEAR, borderMode=border)
        if drawn is None:
            drawn = warped
            continue
        uncovered = cv2.merge([255 - warped[..., 3]] * 3)
        drawn = cv2.add(cv2.multiply(drawn, uncovered, scale=1 / 255), cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB))
    return drawn
