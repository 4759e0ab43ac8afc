"""Progress in calls of networks."""

from collections import Counter
from collections.abc import Mapping

from ldm.methods.contract import Progress


class Tally:
    """Counts calls of networks by stage and reports each.

    Args:
        progress: called as progress(stage, done, total).
        totals: expected calls by stage; a stage that is not in it has no known total.
    """

    def __init__(self, progress: Progress, totals: Mapping[str, int]) -> None:
        self.progress, self.totals, self.done = progress, totals, Counter()

    def __call__(self, stage: str) -> None:
        """Count one call."""
        self.done[stage] += 1
        total = self.totals.get(stage)
        self.progress(stage, self.done[stage], None if total is None else max(total, self.done[stage]))
