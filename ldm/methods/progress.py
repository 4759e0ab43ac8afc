"""Progress, measured in network calls."""

from collections import Counter
from collections.abc import Mapping

from ldm.methods.contract import Progress


class Tally:
    """Count network calls by stage and report each call.

    Args:
        progress: called as progress(stage, done, total).
        totals: expected calls by stage; other stages have an unknown total.
    """

    def __init__(self, progress: Progress, totals: Mapping[str, int]) -> None:
        self.progress, self.totals, self.done = progress, totals, Counter()

    def __call__(self, stage: str) -> None:
        """Count one call."""
        self.done[stage] += 1
        total = self.totals.get(stage)
        self.progress(stage, self.done[stage], None if total is None else max(total, self.done[stage]))
