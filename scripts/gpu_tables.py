"""Markdown tables of the results of scripts/gpu_check.py, which replace those of a document."""

from collections.abc import Mapping
from pathlib import Path

from ldm.benchmark.tables import markdown
from ldm.files import write_atomically

BEGIN, END = "<!-- tables of scripts/gpu_check.py -->", "<!-- end -->"


def put_into(document: Path, results: Mapping) -> None:
    """Write the tables between the marks of a document. Raises ValueError for a document without marks."""
    text = document.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document}: got no marks, expected the lines {BEGIN} and {END}")
    write_atomically(document, f"{before}{BEGIN}\n\n{tables(results)}\n{END}{after}".encode())


def tables(results: Mapping) -> str:
    """Return the tables of all steps; a step without results becomes a line with the reason."""
    parts = []
    for step, write in TABLES.items():
        result = results["steps"].get(step)
        if result is None:
            continue
        failed = result.get("error") or result.get("skipped")
        parts.append(f"{step}: no figures ({failed})\n" if failed else write(result))
    return "\n".join(parts)


def cell(result, key: str | None = None, form: str = "{:.3g}", factor: float = 1.0) -> str:
    """Format a value, or the value of a key; "-" if it is missing."""
    value = result.get(key) if isinstance(result, Mapping) and key else result
    return form.format(value * factor) if isinstance(value, int | float) else "-"


def rows(results: Mapping, *columns: tuple) -> list[tuple]:
    """Return a row per result: its name, and a cell for each column (key, form, factor)."""
    return [(name, *(cell(its, *column) for column in columns)) for name, its in results.items()]


def _rates(result: Mapping) -> str:
    what = f"{result['name']}, torch {result['torch']}, Python {result['python']}, CUDA {result['cuda']}"
    lines = [(f"matrix product, {kind}", cell(rate), "TFLOP/s") for kind, rate in result["tflops"].items()]
    lines += [(f"copy {kind}", cell(rate), "GB/s") for kind, rate in result["gigabytes_per_second"].items()]
    return f"{what}\n\n{markdown(('bare rates', '', 'unit'), lines)}"


def _operations(result: Mapping) -> str:
    lines = rows(result["differences"], ("largest", "{:.1e}"), ("above_1e-4", "{:.2e}"))
    head = ("operation, device against CPU", "largest difference, relative", "part of the values above 1e-4")
    return markdown(head, lines)


def _embedded(result: Mapping) -> str:
    frames, h, w = result["clip"]
    lines = rows(result["precisions"], ("psnr", "{:.1f}"), ("seconds",), ("peak_bytes", "{:.0f}", 1e-6))
    head = (f"small model, {frames} frames of {w}x{h}", "dB to float32 on the CPU", "seconds", "peak MB")
    return markdown(head, lines)


def _golden(result: Mapping) -> str:
    return f"Golden cases on the device: {' '.join(result['summary'])}\n"


def _stages(result: Mapping) -> str:
    lines, flops = [], result.get("gigaflops", {})
    for configuration, stages in result["configurations"].items():
        for stage, its in stages.items():
            seconds = its.get("seconds")
            rate = flops[stage] / seconds / 1e3 if seconds and stage in flops else None
            peak = cell(its, "peak_bytes", "{:.2f}", 1e-9)
            lines.append((configuration, stage, cell(its, "seconds"), cell(rate), peak))
    head = ("precision, layout", "stage", "seconds", "TFLOP/s", "peak GB")
    (h, w), tile = result["frame"], result["tile"]
    return f"Tiles of {tile}x{tile}, frames of {h}x{w} latent pixels.\n\n{markdown(head, lines)}"


def _clip(result: Mapping) -> str:
    frames, h, w = result["clip"]
    ways = {name: its for name, its in result["ways"].items() if isinstance(its, Mapping)}
    lines = []
    for name, its in ways.items():
        per_frame, steps = its.get("per_frame", {}), its.get("steps", {})
        figures = [cell(steps.get(k, {}), "seconds") for k in ("1", "3")] + [cell(per_frame, k) for k in ("4", "50")]
        lines.append((name, *figures, cell(steps.get("3", {}), "peak_bytes", "{:.2f}", 1e-9)))
    ratios = [f"{cell(result['ways'].get(f'ratio_{k}'))} at {k} steps" for k in (4, 50)]
    head = (f"{frames} frames of {w}x{h}, x4", "s, 1 step", "s, 3 steps", "s a frame, 4 steps", "50 steps", "peak GB")
    return f"{markdown(head, lines)}\nReleased cuts relative to ours: {', '.join(ratios)}.\n"


def _seconds_and_peak(title: str, results: Mapping) -> str:
    lines = rows(results, ("seconds", "{:.4g}"), ("peak_bytes", "{:.2f}", 1e-9))
    return markdown((title, "seconds", "peak GB"), lines)


TABLES = {
    "rates": _rates,
    "operations": _operations,
    "embedded": _embedded,
    "golden": _golden,
    "stages": _stages,
    "clip": _clip,
    "faster": lambda result: _seconds_and_peak("U-Net, one tile, bf16", result["unet"]),
    "training": lambda result: _seconds_and_peak("training step, bf16", result["stages"]),
}
