"""Procedural pictures for training without photographs: "dead leaves" collages of random textures.

Pictures are uint8 RGB; all random numbers come from the `numpy.random.Generator` that is passed in.
A collage of occluding shapes whose radii follow r^-3 has the scale invariance and the edges of natural images
(Lee, Mumford, Huang: "Occlusion models for natural images", IJCV 2001). `size` is (height, width) or one side.
"""

import math
import string

import cv2
import numpy as np

FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
)


def procedural_picture(rng, size):
    """Draw a picture (H, W, 3) uint8 RGB: a collage of textures, shapes with sharp edges, strokes and text."""
    height, width = as_size(size)
    picture = random_texture(rng, height, width)
    reach = max(height, width)
    for _ in range(int(rng.integers(12, 40))):
        # radii with density ~ r^-3, as in the dead-leaves model: scale-invariant like photographs
        radius = reach * 0.05 / math.sqrt(1 - rng.random() * 0.99)
        _paste_leaf(rng, picture, radius)
    if rng.random() < 0.5:
        _write_paragraph(rng, picture)
    if rng.random() < 0.4:
        _draw_fur(rng, picture)
    if rng.random() < 0.7:
        _shade(rng, picture)
    return picture


def as_size(size):
    """Convert `size`, one side or (height, width), to (height, width). Raises ValueError for less than one pixel."""
    height, width = (size, size) if np.isscalar(size) else size
    if min(height, width) < 1:
        raise ValueError(f"got size {size}, expected (height, width) of at least 1 pixel")
    return int(height), int(width)


def _palette(rng):
    """Smooth colour table (256, 3) through a few related colours, often sorted from dark to bright."""
    count = int(rng.integers(2, 6))
    hue = (rng.random() * 180 + rng.normal(0, 25, count)) % 180
    saturation = np.clip(rng.beta(1.0, 2.2) * 255 + rng.normal(0, 35, count), 0, 255)  # mostly muted, like photographs
    value = rng.uniform(10, 255, count)
    if rng.random() < 0.6:
        value.sort()
    hsv = np.stack([hue, saturation, value], -1).astype(np.uint8)
    anchors = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0].astype(np.float32)
    return cv2.resize(anchors[None], (256, 1), interpolation=cv2.INTER_LINEAR)[0].round().astype(np.uint8)


def _colour(rng):
    return tuple(int(c) for c in _palette(rng)[rng.integers(256)])


def _paint(field, palette):
    """Colour a field (h, w) of values in [0, 1] with a palette: (h, w, 3) uint8."""
    return palette[np.clip(field * 255, 0, 255).astype(np.uint8)]


def _fractal(rng, height, width):
    """Fractal noise (h, w) float32 in [0, 1]: smoothly enlarged octaves of white noise, amplitude ~ wavelength^p."""
    field = np.zeros((height, width), np.float32)
    power = rng.uniform(0.4, 1.4)
    wavelength = float(max(height, width)) * rng.uniform(0.2, 1.0)
    while wavelength > 1.5:
        cells = (max(2, math.ceil(width / wavelength) + 1), max(2, math.ceil(height / wavelength) + 1))
        octave = rng.standard_normal(cells[::-1], np.float32)
        field += wavelength**power * cv2.resize(octave, (width, height), interpolation=cv2.INTER_CUBIC)
        wavelength /= 2.2
    if rng.random() < 0.3:
        field = np.abs(field)  # ridges, as in marble
    return _unit(field)


def _unit(field):
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-6)


def rotated_axes(rng, height, width):
    """Pixel coordinates (u, v), each (h, w) float32, rotated by a random angle (often 0)."""
    angle = 0.0 if rng.random() < 0.35 else rng.uniform(0, math.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _soft_step(distance):
    """Anti-aliased edge about one pixel wide; `distance` in pixels, positive inside."""
    return np.clip(distance + 0.5, 0, 1)


def stripes(coordinate, period, duty):
    """Anti-aliased stripes in [0, 1]: 1 on the first `duty` of each `period` (pixels)."""
    centred = np.abs((coordinate % period) - period * duty / 2)
    centred = np.minimum(centred, period - centred)
    return _soft_step(period * duty / 2 - centred)


def _texture_fractal(rng, height, width):
    return _paint(_fractal(rng, height, width), _palette(rng))


def _texture_grain(rng, height, width):
    field = rng.standard_normal((height, width), np.float32)
    sigma = (rng.uniform(0.5, 3.0), rng.uniform(0.5, 3.0))
    field = cv2.GaussianBlur(field, (0, 0), sigmaX=sigma[0], sigmaY=sigma[1])
    return _paint(0.5 + field / (6 * float(field.std()) + 1e-6), _palette(rng))


def _texture_grating(rng, height, width):
    u, v = rotated_axes(rng, height, width)
    period = math.exp(rng.uniform(math.log(5), math.log(32)))
    if rng.random() < 0.4:
        u = u + period * rng.uniform(0, 1.5) * np.sin(v * 2 * math.pi / (period * rng.uniform(3, 12)))
    if rng.random() < 0.5:
        return _paint(0.5 + 0.5 * np.sin(u * (2 * math.pi / period)), _palette(rng))
    return _paint(stripes(u, period, rng.uniform(0.2, 0.8)), _palette(rng))


def _texture_checker(rng, height, width):
    u, v = rotated_axes(rng, height, width)
    period = math.exp(rng.uniform(math.log(6), math.log(40)))
    a, b = stripes(u, period, 0.5), stripes(v, period * rng.uniform(0.6, 1.6), 0.5)
    return _paint(a + b - 2 * a * b, _palette(rng))


def _texture_bricks(rng, height, width):
    u, v = rotated_axes(rng, height, width)
    course = math.exp(rng.uniform(math.log(6), math.log(26)))
    length = course * rng.uniform(1, 3)
    row = np.floor(v / course)
    u = u + row * length * rng.choice([0.0, 0.5])
    joint = rng.uniform(0.8, 2.5)
    mortar = np.minimum(1 - stripes(u, length, joint / length), 1 - stripes(v, course, joint / course))
    tone = (np.sin(np.floor(u / length) * 12.9898 + row * 78.233) * 43758.5453) % 1  # one hashed tone per brick
    bricks = _paint(0.3 * _fractal(rng, height, width) + 0.7 * tone.astype(np.float32), _palette(rng))
    return _mix(np.full_like(bricks, _colour(rng)), bricks, mortar)


def _texture_gradient(rng, height, width):
    u, v = rotated_axes(rng, height, width)
    radial = rng.random() < 0.4
    return _paint(_unit(np.hypot(u - u.mean(), v - v.mean()) if radial else u), _palette(rng))


TEXTURES = [_texture_fractal] * 3  # three times as frequent as each of the others
TEXTURES += [_texture_grain, _texture_grating, _texture_checker, _texture_bricks, _texture_gradient]


def random_texture(rng, height, width):
    """Draw one texture, (height, width, 3) uint8: fractal noise, grain, grating, checker, bricks or gradient."""
    return TEXTURES[rng.integers(len(TEXTURES))](rng, height, width)


def _mix(under, over, alpha):
    """Blend two uint8 pictures (h, w, 3) with alpha (h, w) float in [0, 1]; alpha 1 shows `over`."""
    alpha = np.ascontiguousarray(alpha, np.float32)
    return cv2.blendLinear(over, under, alpha, 1 - alpha)


def random_outline(rng, height, width):
    """Points (n, 2) float of a random closed shape that fills a box of height x width pixels."""
    kind = rng.integers(4)
    if kind == 0:  # ellipse
        count, radii = 64, np.ones(64)
    elif kind == 1:  # polygon
        count = int(rng.integers(3, 8))
        radii = rng.uniform(0.6, 1.0, count)
    elif kind == 2:  # blob: a circle with a few smooth harmonics
        count = 72
        turn = np.arange(count) * (2 * math.pi / count)
        waves = sum(rng.normal(0, 0.25 / k) * np.cos(k * turn + rng.uniform(0, 7)) for k in range(2, 6))
        radii = np.clip(0.75 + waves, 0.25, 1)
    else:  # star
        count = 2 * int(rng.integers(4, 10))
        radii = np.where(np.arange(count) % 2, rng.uniform(0.3, 0.8), 1.0)
    turn = np.arange(count) * (2 * math.pi / count) + rng.uniform(0, 2 * math.pi)
    points = np.stack([np.cos(turn), np.sin(turn)], -1) * radii[:, None]
    return (points + 1) / 2 * (width - 1, height - 1)


def _fixed(points):
    """Coordinates in sixteenths of a pixel, as expected by OpenCV for `shift=4`."""
    return np.round(points * 16).astype(np.int32)


def fill_polygon(mask, points):
    """Draw an anti-aliased polygon (n, 2) with sub-pixel corners and value 255 into a uint8 mask (h, w), in place."""
    cv2.fillPoly(mask, [_fixed(points)], 255, cv2.LINE_AA, 4)


def _paste_leaf(rng, picture, radius):
    height, width = picture.shape[:2]
    side = int(np.clip(2 * radius, 5, min(height, width)))
    box_h = max(4, int(side * rng.uniform(0.5, 1.0)))
    top, left = (int(rng.integers(-side // 2, n - side // 2 + 1)) for n in (height, width))
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + box_h, height), min(left + side, width)
    if y1 <= y0 or x1 <= x0:
        return
    mask = np.zeros((box_h, side), np.uint8)
    fill_polygon(mask, random_outline(rng, box_h, side))
    leaf = random_texture(rng, y1 - y0, x1 - x0)
    alpha = mask[y0 - top : y1 - top, x0 - left : x1 - left].astype(np.float32) / 255
    if rng.random() < 0.2:
        alpha = alpha * rng.uniform(0.5, 1)
    picture[y0:y1, x0:x1] = _mix(np.ascontiguousarray(picture[y0:y1, x0:x1]), leaf, alpha)


def random_words(rng, count):
    """Join `count` words of random letters and digits."""
    letters = string.ascii_letters + string.digits
    return " ".join("".join(rng.choice(list(letters), int(rng.integers(2, 9)))) for _ in range(count))


def _write_paragraph(rng, picture):
    """Write lines of random words of random size at a random position, in place."""
    height, width = picture.shape[:2]
    scale = math.exp(rng.uniform(math.log(0.3), math.log(1.6)))
    pitch = int(32 * scale) + int(rng.integers(1, 6))
    font, colour, thickness = FONTS[rng.integers(len(FONTS))], _colour(rng), 1 + int(scale > 0.8)
    left, top = int(rng.integers(-10, max(width // 2, 1))), int(rng.integers(0, max(height // 2, 1)))
    for line in range(int(rng.integers(1, 8))):
        corner = (left, top + pitch * (line + 1))
        words = random_words(rng, int(rng.integers(1, 6)))
        cv2.putText(picture, words, corner, font, scale, colour, thickness, cv2.LINE_AA)


def _draw_fur(rng, picture):
    """Draw thin strokes along a smooth field of directions around a random centre (hair, grass), in place."""
    height, width = picture.shape[:2]
    count = int(min(600, height * width / 60))
    field = cv2.resize(rng.uniform(0, 2 * math.pi, (3, 3)).astype(np.float32), (width, height))
    palette = _palette(rng)
    centre, spread = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.1, 0.35) * max(height, width)
    starts = rng.normal(centre, spread, (count, 2))
    starts = starts[((starts >= 0) & (starts < (width, height))).all(1)]
    length = rng.uniform(4, 16)
    turns = field[starts[:, 1].astype(int), starts[:, 0].astype(int)]
    tips = starts + length * rng.uniform(0.5, 1.5, (len(starts), 1)) * np.stack([np.cos(turns), np.sin(turns)], -1)
    tones = palette[rng.integers(0, 256, len(starts))].tolist()
    for start, tip, tone in zip(_fixed(starts).tolist(), _fixed(tips).tolist(), tones, strict=True):
        cv2.line(picture, start, tip, tone, 1, cv2.LINE_AA, 4)


def _shade(rng, picture):
    """Multiply the picture by a smooth random illumination, in place."""
    height, width = picture.shape[:2]
    light = cv2.resize(rng.uniform(0.55, 1.25, (2, 2)).astype(np.float32), (width, height))
    picture[:] = np.clip(picture * light[..., None], 0, 255).round().astype(np.uint8)
