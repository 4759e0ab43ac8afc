"""Render the demo clip: a procedural street scene with a slow camera, a van, a clock and leaves in the wind.

python assets/demo/make_clip.py                                 writes assets/demo/clip.mp4 (160x90, 24 frames)
python assets/demo/make_clip.py --ground-truth street.mkv       writes the ground truth instead (640x360, lossless)

The scene is drawn three times larger and averaged down. The clip is the scene with a slight blur, averaged over 4x4
pixels, with a little noise, compressed by H.264. Lengths are in pixels of the 640x360 frame; x points right, y down.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs without installing the package

import cv2
import numpy as np

from ldm import video

WIDTH, HEIGHT, FRAMES, RATE, SCALE = 640, 360, 24, 24, 4
FINE = 3  # supersampling: drawn pixels per frame pixel
SERIF, SANS, PLAIN = cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_SIMPLEX
CREAM, GOLD, GREEN, DARK = (240, 232, 212), (222, 184, 92), (24, 66, 54), (34, 32, 36)
RED, TEAL, STONE, WOOD = (182, 52, 44), (38, 128, 134), (172, 166, 156), (112, 72, 44)
SPINES = ((150, 40, 38), (36, 70, 110), (206, 168, 84), (58, 96, 66), (220, 208, 180), (88, 56, 92), (44, 44, 52), TEAL)


class Layer:
    """A transparent layer of the scene; shapes take lengths in frame pixels and are drawn anti-aliased."""

    def __init__(self, width, height):
        self.colour = np.zeros((height * FINE, width * FINE, 3), np.uint8)
        self.alpha = np.zeros((height * FINE, width * FINE), np.uint8)

    def polygon(self, points, colour):
        fixed = [np.round(np.asarray(points, float) * FINE * 16).astype(np.int32)]
        cv2.fillPoly(self.colour, fixed, colour, cv2.LINE_AA, 4)
        cv2.fillPoly(self.alpha, fixed, 255, cv2.LINE_AA, 4)

    def box(self, x, y, width, height, colour):
        self.polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], colour)

    def disc(self, x, y, radius, colour):
        turn = np.linspace(0, 2 * math.pi, 90)
        self.polygon(np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], -1), colour)

    def line(self, start, end, colour, width=1.0):
        (x0, y0), (x1, y1) = start, end
        length = max(math.hypot(x1 - x0, y1 - y0), 1e-6)
        nx, ny = (y0 - y1) / length * width / 2, (x1 - x0) / length * width / 2
        self.polygon([(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)], colour)

    def text(self, words, middle, baseline, height, colour, font=SANS):
        """Write text centred at x = middle; `height` is that of capital letters."""
        weight = max(1, round(height * FINE / 11))
        scale = height * FINE / 22
        length = cv2.getTextSize(words, font, scale, weight)[0][0]
        corner = round(middle * FINE - length / 2), round(baseline * FINE)
        for sheet, ink in ((self.colour, colour), (self.alpha, 255)):
            cv2.putText(sheet, words, corner, font, scale, ink, weight, cv2.LINE_AA)

    def shade(self, x, y, width, height, strength):
        """Darken a box with a soft lower edge, like a shadow cast from above."""
        rows, columns = slice(y * FINE, (y + height) * FINE), slice(x * FINE, (x + width) * FINE)
        fade = 1 - strength * np.linspace(1, 0, height * FINE)[:, None, None]
        self.colour[rows, columns] = np.round(self.colour[rows, columns] * fade)


def noise(rng, height, width, cell):
    """Smooth noise with a standard deviation of about one and blobs of `cell` drawn pixels."""
    small = rng.standard_normal((max(2, height // cell), max(2, width // cell)), np.float32)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def tint(colour, change):
    return tuple(int(np.clip(c + change, 0, 255)) for c in colour)


# ------------------------------------------------------------------------------------------------------ the wall


def wall():
    """Opaque background layer: a row of houses, pavement and road."""
    rng, layer = np.random.default_rng(1), Layer(860, HEIGHT + 20)
    bricks(rng, layer, 0, 0, 545, 286, (158, 84, 62))
    bricks(rng, layer, 545, 0, 315, 286, (196, 176, 142))
    layer.box(0, 20, 545, 10, STONE)
    layer.box(0, 30, 545, 3, tint(STONE, -50))
    for x in range(4, 545, 14):
        layer.box(x, 33, 7, 5, tint(STONE, -20))
    layer.shade(0, 38, 545, 14, 0.45)
    layer.box(540, 0, 8, 286, tint(STONE, -30))
    for x in (20, 100):
        upper_window(layer, x - 10, 46)
    book_shop(rng, layer, 150)
    poster(layer, 444, 128)
    ivy(rng, layer, 408, 30, 150)
    tea_house(rng, layer, 566)
    pavement(rng, layer)
    grain = noise(rng, *layer.alpha.shape, 2) * 4 + noise(rng, *layer.alpha.shape, 60) * 5
    layer.colour[:] = np.clip(layer.colour + grain[..., None], 0, 255)
    return layer


def bricks(rng, layer, left, top, width, height, colour):
    layer.box(left, top, width, height, tint(colour, 34))
    for row, y in enumerate(range(top, top + height, 8)):
        for x in range(left - 11 * (row % 2), left + width, 22):
            start, end = max(x, left), min(x + 20.6, left + width)
            if end > start:
                layer.box(start, y, end - start, 6.8, tint(colour, int(rng.normal(0, 13))))


def upper_window(layer, x, y):
    layer.box(x - 5, y - 5, 60, 84, CREAM)
    layer.box(x, y, 50, 72, (62, 78, 96))
    for row in range(3):
        for column in range(2):
            shine = 18 * ((row + column) % 2)
            layer.box(x + 2 + column * 24, y + 2 + row * 24, 22, 21, (84 + shine, 108 + shine, 132 + shine))
    layer.polygon([(x + 2, y + 2), (x + 20, y + 2), (x + 8, y + 70), (x + 2, y + 70)], (226, 214, 196))
    layer.box(x - 9, y + 76, 68, 6, STONE)


def book_shop(rng, layer, x):
    layer.box(x, 48, 262, 238, GREEN)
    layer.box(x + 6, 54, 250, 38, tint(GREEN, -12))
    for inset, colour in ((9, GOLD), (10, tint(GREEN, -12))):
        layer.box(x + inset, 48 + inset, 262 - 2 * inset, 50 - 2 * inset, colour)
    layer.text("NIGHT OWL BOOKS", x + 131, 80, 15, GOLD, SERIF)
    layer.box(x + 10, 126, 160, 128, (52, 40, 30))
    for shelf in range(3):
        books(rng, layer, x + 12, x + 168, 160 + 38 * shelf)
    for bar in (62, 116):
        layer.box(x + bar, 126, 3, 128, tint(GREEN, 12))
    layer.box(x + 10, 254, 160, 5, tint(GREEN, 30))
    for panel in range(3):
        layer.box(x + 14 + 52 * panel, 264, 46, 16, tint(GREEN, 14))
    door(layer, x + 186)
    for stripe in range(22):
        left = x + 2 + stripe * 11.8
        colour = RED if stripe % 2 else CREAM
        layer.box(left, 100, 11.8, 22, colour)
        layer.disc(left + 5.9, 122, 5.9, colour)
    layer.shade(x + 2, 129, 258, 26, 0.5)


def books(rng, layer, left, right, floor):
    layer.box(left, floor, right - left, 4, WOOD)
    while left < right - 5:
        wide, tall = rng.uniform(3.5, 8), rng.uniform(20, 31)
        colour = tint(SPINES[rng.integers(len(SPINES))], int(rng.normal(0, 16)))
        wide = min(wide, right - left)
        layer.box(left, floor - tall, wide - 0.5, tall, colour)
        for band in (0.15, 0.22, 0.8):
            layer.box(left, floor - tall * (1 - band), wide - 0.5, 1, tint(colour, 70))
        left += wide


def door(layer, x):
    layer.box(x, 122, 66, 164, tint(GREEN, -20))
    layer.box(x + 4, 126, 58, 160, WOOD)
    for row in range(3):
        for column in range(2):
            layer.box(x + 10 + column * 24, 134 + row * 28, 21, 25, (150 - 16 * row, 176 - 14 * row, 178 - 10 * row))
    layer.box(x + 10, 224, 46, 50, tint(WOOD, -20))
    layer.box(x + 13, 227, 40, 44, tint(WOOD, 14))
    layer.disc(x + 58, 216, 2.6, GOLD)
    layer.box(x + 18, 166, 30, 16, CREAM)
    layer.text("OPEN", x + 33, 174, 4.6, RED)
    layer.text("Mon-Sat 9-18", x + 33, 180, 2.6, DARK, PLAIN)


def poster(layer, x, y):
    layer.box(x - 3, y - 3, 86, 126, DARK)
    layer.box(x, y, 80, 120, (236, 222, 186))
    layer.disc(x + 40, y + 50, 25, (224, 96, 44))
    for step in range(6):
        layer.box(x, y + 48 + step * 5, 80, 2.4, (236, 222, 186))
    for key in range(11):
        layer.box(x + 2 + key * 7, y + 76, 6.4, 14, (250, 248, 240))
        if key % 7 not in (2, 6) and key < 10:
            layer.box(x + 6.6 + key * 7, y + 76, 3.6, 8.4, DARK)
    layer.text("JAZZ", x + 40, y + 21, 14, (28, 52, 88), SERIF)
    layer.text("ON THE ROOF", x + 40, y + 100, 6.5, RED)
    layer.text("Saturday 20:30", x + 40, y + 109, 4.6, DARK)
    layer.text("doors open at 19:45 - free entry", x + 40, y + 115.5, 2.4, DARK, PLAIN)


def ivy(rng, layer, x, top, length):
    """Leaves along a hanging stem: short pointed strokes, dark ones drawn first."""
    count = 520
    for number in range(count):
        along = rng.beta(1.1, 1.7)
        centre = x + 9 * math.sin(along * 9) + rng.normal(0, 11 * (1.15 - along)), top + along * length
        tone = 40 * number / count + rng.normal(0, 10)
        leaf(layer, centre, rng.uniform(3.5, 6.5), rng.normal(1.4, 0.7), tint((46, 84, 34), tone))


def leaf(layer, centre, length, turn, colour):
    u, v = np.array([math.cos(turn), math.sin(turn)]) * length, np.array([-math.sin(turn), math.cos(turn)]) * length
    tip = np.asarray(centre)
    layer.polygon([tip - u * 0.6, tip + v * 0.3, tip + u * 0.7, tip - v * 0.3], colour)


def tea_house(rng, layer, x):
    layer.box(x, 66, 236, 30, (60, 42, 60))
    layer.text("TEA & COFFEE", x + 118, 88, 13, CREAM, SERIF)
    for window in (x + 8, x + 128):
        layer.box(window - 4, 112, 108, 128, CREAM)
        layer.box(window, 116, 100, 120, (232, 188, 108))
        layer.box(window, 206, 100, 30, (90, 60, 44))
        for row in range(8):
            layer.line((window, 116 + row * 15), (window + 100, 116 + row * 15), (96, 76, 60), 1.6)
        for column in range(7):
            layer.line((window + column * 16.6, 116), (window + column * 16.6, 236), (96, 76, 60), 1.6)
    for column in range(30):
        for row in range(4):
            colour = TEAL if (row + column) % 2 else CREAM
            layer.box(x + column * 8, 250 + row * 8, 7.4, 7.4, tint(colour, int(rng.normal(0, 6))))


def pavement(rng, layer):
    layer.box(0, 286, 860, 28, (150, 146, 140))
    for row, (y, height) in enumerate(((286, 7), (293, 9), (302, 12))):
        for x in range(-40, 900, 26 + 4 * row):
            layer.box(x + row * 9, y, 25 + 4 * row, height - 0.9, tint((160, 155, 148), int(rng.normal(0, 8))))
    layer.shade(0, 286, 860, 8, 0.4)
    layer.box(0, 314, 860, 5, (196, 192, 186))
    layer.box(0, 319, 860, 61, (72, 72, 78))
    rows = slice(319 * FINE, None)
    speckle = noise(rng, layer.alpha.shape[0] - 319 * FINE, layer.alpha.shape[1], 3) * 9
    layer.colour[rows] = np.clip(layer.colour[rows] + speckle[..., None], 0, 255)
    for x in range(0, 860, 90):
        layer.polygon([(x, 343), (x + 46, 343), (x + 43, 348), (x - 4, 348)], (214, 210, 198))


# -------------------------------------------------------------------------------------------------- moving things


def clock_hands(time):
    layer = Layer(72, 72)
    layer.disc(36, 36, 30, DARK)
    layer.disc(36, 36, 26.5, (246, 242, 230))
    for mark in range(60):
        turn, reach = mark * math.pi / 30, 21.0 if mark % 5 == 0 else 23.5
        ends = [(36 + r * math.sin(turn), 36 - r * math.cos(turn)) for r in (reach, 25.2)]
        layer.line(*ends, DARK, 1.6 if mark % 5 == 0 else 0.7)
    for turn, reach, width, colour in ((5.05, 13, 3, DARK), (1.75, 20, 2, DARK), (0.4 + 0.09 * time, 22, 1.2, RED)):
        layer.line((36, 36), (36 + reach * math.sin(turn), 36 - reach * math.cos(turn)), colour, width)
    layer.disc(36, 36, 2.4, RED)
    return layer


def van(distance):
    """The van of the bakery; its wheels are rotated for a driven `distance` in pixels."""
    layer = Layer(210, 110)
    body = [(6, 92), (6, 18), (14, 10), (148, 10), (176, 48), (200, 56), (204, 66), (204, 92)]
    layer.polygon(body, (236, 190, 60))
    layer.box(6, 66, 198, 7, (250, 244, 226))
    layer.polygon([(134, 18), (146, 18), (168, 48), (134, 48)], (96, 124, 140))
    layer.polygon([(140, 18), (146, 18), (168, 48), (158, 48)], (164, 190, 200))
    layer.line((130, 12), (130, 90), (176, 132, 32), 1)
    layer.box(112, 52, 10, 2.4, DARK)
    layer.text("FRESH BREAD", 68, 36, 10.5, (120, 40, 28), SERIF)
    layer.text("every morning from six", 68, 48, 4.6, DARK)
    layer.text("tel. 0451-7788", 68, 58, 3.6, DARK, PLAIN)
    layer.box(0, 86, 208, 7, DARK)
    layer.disc(198, 70, 4, (255, 250, 220))
    layer.box(6, 64, 5, 10, RED)
    for x in (44, 166):
        layer.disc(x, 92, 16, (28, 28, 32))
        layer.disc(x, 92, 9.5, (206, 206, 210))
        for spoke in range(5):
            turn = distance / 16 + spoke * 2 * math.pi / 5
            layer.line((x, 92), (x + 9 * math.cos(turn), 92 + 9 * math.sin(turn)), (70, 70, 76), 2.4)
        layer.disc(x, 92, 2.5, DARK)
    return layer


def shadow():
    layer = Layer(230, 24)
    turn = np.linspace(0, 2 * math.pi, 60)
    layer.polygon(np.stack([115 + 104 * np.cos(turn), 12 + 7 * np.sin(turn)], -1), (20, 20, 24))
    layer.alpha = cv2.GaussianBlur(layer.alpha, (0, 0), 2.2 * FINE) // 2
    return layer


def lamp():
    layer = Layer(60, HEIGHT + 20)
    layer.box(26, 70, 6, 256, DARK)
    layer.box(27, 70, 1.4, 256, (92, 92, 98))
    layer.polygon([(20, 326), (38, 326), (42, 340), (16, 340)], DARK)
    layer.polygon([(16, 36), (42, 36), (37, 70), (21, 70)], (250, 232, 176))
    for start, end in (((16, 36), (21, 70)), ((42, 36), (37, 70)), ((29, 36), (29, 70))):
        layer.line(start, end, DARK, 2)
    layer.polygon([(12, 36), (46, 36), (29, 20)], DARK)
    layer.disc(29, 19, 3, DARK)
    return layer


def branch(time):
    """Leaves close to the camera; each swings slightly with its own phase."""
    rng, layer = np.random.default_rng(5), Layer(260, 130)
    layer.line((262, 0), (120, 42), (64, 46, 36), 6)
    layer.line((170, 26), (96, 84), (64, 46, 36), 3)
    for number in range(230):
        along = rng.random()
        x, y = (262 - 170 * along, 46 * along) if number % 2 else (172 - 84 * along, 26 + 66 * along)
        place = x + rng.normal(0, 14), y + rng.normal(4, 11)
        swing = 0.22 * math.sin(time * 0.45 + rng.uniform(0, 2))
        tone = rng.normal(0, 20) + 45 * number / 230
        leaf(layer, place, rng.uniform(7, 11), rng.normal(1.9, 0.6) + swing, tint((74, 108, 34), tone))
    return layer


# -------------------------------------------------------------------------------------------------------- pictures


def place(drawn, layer, x, y):
    """Composite a layer over the drawn frame with its top left corner at (x, y), with sub-pixel precision."""
    size = drawn.shape[1::-1]
    matrix = np.float64([[1, 0, x * FINE], [0, 1, y * FINE]])
    sheet = np.dstack([layer.colour, layer.alpha])
    if FINE > 1:  # premultiply alpha, so that colours of empty pixels do not bleed into edges
        sheet[..., :3] = np.round(sheet[..., :3] * (sheet[..., 3:] / 255.0))
    moved = cv2.warpAffine(sheet, matrix, size, flags=cv2.INTER_LINEAR).astype(np.float32)
    return drawn * (1 - moved[..., 3:] / 255) + moved[..., :3]


def render():
    """Yield the frames of the scene, (360, 640, 3) uint8 RGB."""
    houses, post, dark = wall(), lamp(), shadow()
    for time in range(FRAMES):
        camera = 36 + 2.3 * time + 1.5 * math.sin(time / 5)
        lift = 6 + 1.2 * math.sin(time / 4)
        drawn = np.zeros((HEIGHT * FINE, WIDTH * FINE, 3), np.float32)
        drawn = place(drawn, houses, -camera, -lift)
        drawn = place(drawn, clock_hands(time), 448 - camera, 46 - lift)
        driven = 7.5 * time
        drawn = place(drawn, dark, driven - 42 - camera * 1.1, 332 - lift)
        drawn = place(drawn, van(driven), driven - 30 - camera * 1.1, 236 - lift + 0.5 * math.sin(time * 1.7))
        drawn = place(drawn, post, 590 - camera * 1.35, 8 - lift)
        drawn = place(drawn, branch(time), 500 - camera * 1.6 + 60, -6 - lift)
        yield cv2.resize(drawn, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).round().clip(0, 255).astype(np.uint8)


def degrade(frame, rng):
    """Blur, average and add noise: (360, 640, 3) -> (90, 160, 3) uint8."""
    soft = cv2.GaussianBlur(frame, (0, 0), 1.0)
    small = cv2.resize(soft, (WIDTH // SCALE, HEIGHT // SCALE), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.clip(np.round(small + rng.normal(0, 1.5, small.shape)), 0, 255).astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("clip.mp4"))
    parser.add_argument("--ground-truth", type=Path, help="write the lossless ground truth instead")
    args = parser.parse_args()
    if args.ground_truth:
        with video.open_writer(args.ground_truth, size=(HEIGHT, WIDTH), rate=RATE, lossless=True) as writer:
            for frame in render():
                writer.write(frame)
        return
    rng = np.random.default_rng(2)
    with video.open_writer(args.output, size=(HEIGHT // SCALE, WIDTH // SCALE), rate=RATE, crf=20) as writer:
        for frame in render():
            writer.write(degrade(frame, rng))


if __name__ == "__main__":
    main()
