"""Best-fit-decreasing bin packing: which examples share a row of `capacity` tokens."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return bins of indices whose lengths sum to at most `capacity`, in the order the bins were opened.

    Longest first, each into the fullest bin that still holds it (Johnson 1973: at most 11/9 of the optimum). The bins
    are found by bisection over the at most `capacity` different amounts of free room: O(n log n).
    """
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # free room -> numbers of the bins that have it, a stack
    rooms: list[int] = []  # the keys of by_room, sorted
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = lengths[index]
        assert 0 <= length <= capacity, f"an item of length {length} does not fit into {capacity}"
        place = bisect.bisect_left(rooms, length)
        if place == len(rooms):
            number, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[place]
            number = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        bins[number].append(index)
        left = room - length
        if left not in by_room:
            bisect.insort(rooms, left)
            by_room[left] = []
        by_room[left].append(number)
    return bins
