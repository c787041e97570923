"""Which waiting trial starts on which node: a pure function of the nodes, the running trials and the waiting ones.

Every trial that fits starts, most wanted first. A trial that does not fit gets a *reservation*: GPUs of one node from
the moment at which they will be free. Until then only trials that end before that moment start on these GPUs, so
small trials cannot starve a *gang*, a trial of several GPUs. All other nodes stay open.

Two rules keep GPUs busy. A trial that could start on several nodes takes the one with the most work ahead of it, so
that other nodes become empty as wholes. Emptying a node for a gang leaves its GPUs idle one after another, so the
reservation is made where this wastes the fewest GPU-seconds; a gang rather waits behind another gang than empties one
more node, as long as PATIENCE allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

PATIENCE = 0.4  # idle GPU-seconds that are worth one second less of waiting for a trial with a reservation
RESERVATIONS = 16  # most trials that have a reservation at a time; the others start where they fit
OVERDUE = 1e-3  # seconds until the expected end of a trial that has run for longer than expected
SLACK = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine: no trial spans two."""

    name: str
    cpus: float
    gpus: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What a waiting trial asks for."""

    cpus: float
    gpus: float  # a fraction of one, or a whole number
    seconds: float  # how long it is expected to run

    @property
    def share(self) -> float:
        """What it takes of each of its GPUs."""
        return min(self.gpus, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stay:
    """A trial on a node: one that runs, or one with a reservation, which starts later."""

    node: str
    cpus: float
    gpu_ids: tuple[int, ...]  # on that node
    share: float
    start: float
    end: float  # expected


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a waiting trial starts now."""

    index: int  # in the queue
    node: str
    gpu_ids: tuple[int, ...]


def place(nodes: Sequence[Node], running: Sequence[Stay], waiting: Sequence[Need], now: float) -> Iterator[Place]:
    """The trials that start now, most wanted first; worked out no further than the caller reads.

    Args:
        running: trials on other nodes than the given ones are ignored.
        waiting: most wanted first.
    """
    stays: dict[str, list[Stay]] = {node.name: [] for node in nodes}
    for stay in running:
        if stay.node in stays:
            stays[stay.node].append(stay if stay.end > now else replace(stay, end=now + OVERDUE))
    reservations = 0
    for index, need in enumerate(waiting):
        found = [(free, node) for node in nodes if (free := _free(node, stays[node.name], need, now)) is not None]
        if found:
            gpu_ids, node = max(found, key=lambda option: _ahead(stays[option[1].name], now))
            yield Place(index=index, node=node.name, gpu_ids=gpu_ids)
            stays[node.name].append(_stay(node, need, gpu_ids, now))
        elif reservations < RESERVATIONS:
            later = _reserve(nodes, stays, need, now)
            if later:
                stays[later.node].append(later)
                reservations += 1


def _reserve(nodes: Sequence[Node], stays: Mapping[str, Sequence[Stay]], need: Need, now: float) -> Stay | None:
    """The later place that costs least, in idle GPU-seconds and patience; None where no node is large enough."""
    best: tuple[float, Stay] | None = None
    for node in nodes:
        freed: dict[int, float] = {}
        for stay in stays[node.name]:
            for gpu in stay.gpu_ids:
                freed[gpu] = max(stay.end, freed.get(gpu, now))
        number = int(need.gpus)
        missing = number - (node.gpus - len(freed))  # GPUs that somebody has now
        if missing > len(freed):
            continue
        enough = sorted(freed.values())[missing - 1] if missing > 0 else now  # whole GPUs are not free before
        for moment in sorted({enough, *(stay.end for stay in stays[node.name])}):
            gpu_ids = _free(node, stays[node.name], need, moment) if moment >= enough else None
            if gpu_ids is not None:
                idle = sum(max(0.0, moment - freed.get(gpu, now)) for gpu in gpu_ids)
                cost = idle + PATIENCE * (moment - now)
                if best is None or cost < best[0]:
                    best = cost, _stay(node, need, gpu_ids, moment)
                break
    return best[1] if best else None


def _free(node: Node, stays: Sequence[Stay], need: Need, moment: float) -> tuple[int, ...] | None:
    """GPUs that the trial could have from a moment on to its end; None where it does not fit, () without GPUs.

    A shared GPU is the fullest with room, as Ray packs them.
    """
    until = moment + need.seconds
    there = [stay for stay in stays if stay.start < until and stay.end > moment]
    if sum([stay.cpus for stay in there]) + need.cpus > node.cpus + SLACK:
        return None
    loads = _loads(there)
    if not need.gpus:
        return ()
    if need.share < 1:
        shared = [gpu for gpu, load in loads.items() if load + need.share <= 1 + SLACK]
        if shared:
            return (max(shared, key=lambda gpu: (loads[gpu], -gpu)),)
    number = max(1, int(need.gpus))
    if node.gpus - len(loads) < number:
        return None
    fresh = (gpu for gpu in count() if gpu not in loads)
    return tuple(next(fresh) for _ in range(number))


def _ahead(stays: Sequence[Stay], now: float) -> float:
    """GPU-seconds of work that a node has ahead of it; core-seconds for trials without GPUs."""
    return sum([(stay.end - max(stay.start, now)) * (len(stay.gpu_ids) * stay.share or stay.cpus) for stay in stays])


def _loads(stays: Sequence[Stay]) -> dict[int, float]:
    """How full each GPU is that anyone uses."""
    loads: dict[int, float] = {}
    for stay in stays:
        for gpu in stay.gpu_ids:
            loads[gpu] = loads.get(gpu, 0.0) + stay.share
    return loads


def _stay(node: Node, need: Need, gpu_ids: tuple[int, ...], start: float) -> Stay:
    return Stay(
        node=node.name,
        cpus=need.cpus,
        gpu_ids=gpu_ids,
        share=need.share,
        start=start,
        end=start + max(need.seconds, OVERDUE),
    )
