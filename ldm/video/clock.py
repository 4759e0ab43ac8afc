"""Repair time stamps: clocks that restart within a file, and times that do not increase.

In concatenated recordings (`cat a.ts b.ts`) the clock restarts at 0: all later times are shifted by one offset. A time
stamp that is repeated or out of order is moved between its neighbours; the others are kept.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import av

from ldm.video.source import Shift

# In these containers, a clock that jumps forward by more seconds belongs to another recording (as in FFmpeg)
MAX_JUMP, JUMPING = 10, ("mpegts", "mpeg")
STEADY = ("mp4", "avi")  # containers whose decoding times cannot go back: they are stored as durations, or counted


class Stamp(NamedTuple):
    """The time of a packet on the clock of its stream, in ticks; `number` counts the packets of that stream."""

    number: int
    time: int | None
    end: int


class Restart(NamedTuple):
    """The first packet after a restart of a clock; times in seconds, `order` counts the packets of the file."""

    order: int
    stream: int
    packet: int
    before: Fraction
    begins: Fraction


class ClockReader:
    """Finds where the clocks of a file restart, from its packets in order."""

    def __init__(self, container):
        names = container.format.name.split(",")
        self.jumps = any(name in JUMPING for name in names)
        self.steady = any(name in STEADY for name in names)
        self.stamps = defaultdict(list)  # by stream
        self.orders = defaultdict(list)
        self.units = {stream.index: stream.time_base for stream in container.streams if stream.time_base}
        self.sparse = {stream.index for stream in container.streams if stream.type not in ("video", "audio")}
        self.count = 0

    def take(self, packet: av.Packet):
        """Add the next packet of the file."""
        stamps = self.stamps[packet.stream_index]
        time = packet.dts  # presentation times are not monotonic
        end = None if time is None else max(time, time if packet.pts is None else packet.pts) + (packet.duration or 0)
        stamps.append(Stamp(len(stamps), time, end))
        self.orders[packet.stream_index].append(self.count)
        self.count += 1

    def end(self) -> Fraction:
        """Return the time in seconds at which the last packet of any stream ends; 0 if no packet has a time."""
        ends = [stamp.end * self.units[index] for index, held in self.stamps.items() for stamp in held if stamp.end]
        return max(ends, default=Fraction(0))

    def shifts(self) -> tuple[Shift, ...]:
        """Return the shifts of the clocks; empty for nearly all files."""
        if self.steady:
            return ()
        found = [one for index in self.stamps if index not in self.sparse for one in self._restarts(index)]
        return tuple(self._joined(sorted(found)))

    def _restarts(self, index):
        """Return the restarts of one stream."""
        unit, orders = self.units[index], self.orders[index]
        stamps = [stamp for stamp in self.stamps[index] if stamp.time is not None]
        max_jump, last, end = MAX_JUMP / unit, None, None
        for place, stamp in enumerate(stamps):
            after = stamps[place + 1].time if place + 1 < len(stamps) else None
            if last is not None and self._is_restart(last, stamp.time, after, max_jump):
                yield Restart(orders[stamp.number], index, stamp.number, end * unit, stamp.time * unit)
                end = stamp.end
            elif last is not None and stamp.time < last:
                continue  # a single stamp out of order
            elif last is not None and after is not None and last <= after < stamp.time:
                continue  # a single one that is too late
            last, end = stamp.time, stamp.end if end is None else max(end, stamp.end)

    def _is_restart(self, last, now, after, max_jump):
        """Whether a clock permanently jumps back, or far ahead."""
        if now < last:
            return after is None or after < last
        return self.jumps and now - last > max_jump and (after is None or after >= now)

    def _joined(self, restarts):
        """Return shifts of all streams; successive restarts of different streams count as one."""
        groups = []
        for restart in restarts:
            if not groups or restart.stream in {one.stream for one in groups[-1]}:
                groups.append([])
            groups[-1].append(restart)
        offsets = defaultdict(Fraction)
        for group in groups:
            jumps = all(one.begins > one.before for one in group)
            if jumps and {one.stream for one in group} != self.units.keys() - self.sparse:
                continue  # a pause in one stream
            base = max(one.before + offsets[one.stream] for one in group)
            offset = base - min(one.begins for one in group)
            first = min(one.order for one in group)
            for one in group:
                offsets[one.stream] = offset
                yield Shift(one.stream, one.packet, round(offset / self.units[one.stream]))
            for index in self.sparse & self.units.keys():
                yield Shift(index, bisect_left(self.orders[index], first), round(offset / self.units[index]))


def demuxed(container, clock: Sequence[Shift], *streams) -> Iterator[av.Packet]:
    """Yield the packets of some streams from the start of the file, with times shifted by `clock`."""
    if not clock:
        yield from container.demux(*streams)
        return
    counts = defaultdict(int)
    for packet in container.demux(*streams):
        if packet.size:
            index, number = packet.stream_index, counts[packet.stream_index]
            counts[index] += 1
            ticks = next((s.ticks for s in reversed(clock) if s.stream == index and s.packet <= number), 0)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        yield packet


def rising(times: Sequence[int | None]) -> tuple[tuple[int, ...] | None, int]:
    """Return (strictly increasing times, number of changed times), with as few changes as possible.

    Changed times lie between their neighbours. The times are None if more than half would change, or if there is no
    room between two that are kept.
    """
    kept = _longest_rise(times)
    moved = len(times) - len(kept)
    if not moved:
        return tuple(times), 0
    if 2 * moved > len(times):
        return None, moved
    usual = max((times[kept[-1]] - times[kept[0]]) // max(kept[-1] - kept[0], 1), 1)
    made = list(times)
    for left, right in zip([None, *kept], [*kept, None], strict=True):
        first, stop = 0 if left is None else left + 1, len(times) if right is None else right
        low = times[right] - usual * (stop - first + 1) if left is None else times[left]
        high = low + usual * (stop - first + 1) if right is None else times[right]
        if high - low <= stop - first:
            return None, moved
        for place in range(first, stop):
            made[place] = low + (high - low) * (place - first + 1) // (stop - first + 1)
    return tuple(made), moved


def _longest_rise(times):
    """Return the indices of a longest strictly increasing subsequence of the known times."""
    tails, places, before = [], [], {}
    for place, time in enumerate(times):
        if time is None:
            continue
        at = bisect_left(tails, time)
        if at < len(tails) and tails[at] == time:
            continue  # of two equal ones the first stays
        before[place] = places[at - 1] if at else None
        tails[at : at + 1], places[at : at + 1] = [time], [place]
    found, place = [], places[-1] if places else None
    while place is not None:
        found.append(place)
        place = before[place]
    return found[::-1]
