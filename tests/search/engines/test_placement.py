"""What starts where: nothing overfull, nothing idle for nothing, nobody starved."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from search.engines.placement import Need, Node, Stay, place

NODES = tuple(Node(name=name, cpus=64, gpus=8) for name in ("a", "b", "c"))
GANG = Need(cpus=8, gpus=8, seconds=500)
PROXY = Need(cpus=1, gpus=1, seconds=500)
SMOKE = Need(cpus=1, gpus=0.25, seconds=100)


def stay(node: str, *gpu_ids: int, end: float, share: float = 1.0) -> Stay:
    return Stay(node=node, cpus=1, gpu_ids=gpu_ids, share=share, start=0.0, end=end)


def proxies(node: str, *ends: float) -> list[Stay]:
    return [stay(node, gpu, end=end) for gpu, end in enumerate(ends)]


def started(nodes, running, waiting, now=0.0) -> dict[int, tuple[str, tuple[int, ...]]]:
    return {p.index: (p.node, p.gpu_ids) for p in place(nodes, running, waiting, now)}


needs = st.builds(
    Need,
    cpus=st.sampled_from([0.5, 1.0, 8.0, 70.0]),
    gpus=st.sampled_from([0.0, 0.25, 0.4, 0.5, 1.0, 2.0, 8.0]),
    seconds=st.floats(1, 1000),
)


@given(rounds=st.lists(st.lists(needs, max_size=12), min_size=1, max_size=4))
def test_no_gpu_and_no_core_is_given_twice(rounds: list[list[Need]]) -> None:
    """Counted by hand, over several moments at which some trials have ended and others were started."""
    running: list[Stay] = []
    for now, waiting in enumerate(rounds):
        running = [s for s in running if s.end > 250 * now]
        for found in place(NODES, running, waiting, 250.0 * now):
            need = waiting[found.index]
            assert len(set(found.gpu_ids)) == len(found.gpu_ids) == (max(1, int(need.gpus)) if need.gpus else 0)
            start = 250.0 * now
            running.append(
                Stay(
                    node=found.node,
                    cpus=need.cpus,
                    gpu_ids=found.gpu_ids,
                    share=min(need.gpus, 1.0),
                    start=start,
                    end=start + need.seconds,
                )
            )
        loads: Counter[tuple[str, int]] = Counter()
        for s in running:
            loads.update({(s.node, gpu): s.share for gpu in s.gpu_ids})
        assert all(load <= 1 + 1e-6 for load in loads.values())
        assert all(0 <= gpu < 8 for _, gpu in loads)
        assert all(sum(s.cpus for s in running if s.node == node.name) <= node.cpus + 1e-6 for node in NODES)


@given(waiting=st.lists(needs, min_size=1, max_size=12))
def test_the_first_that_fits_an_empty_cluster_always_starts(waiting: list[Need]) -> None:
    found = started(NODES, [], waiting)
    fits = [i for i, need in enumerate(waiting) if need.cpus <= 64]
    assert fits[:1] == sorted(found)[:1]


def test_fractions_share_a_gpu_and_whole_nodes_stay_free() -> None:
    found = started(NODES, [], [SMOKE] * 5 + [GANG, GANG, GANG])
    assert Counter(gpu_ids for _, gpu_ids in list(found.values())[:5]) == {(0,): 4, (1,): 1}
    assert len({found[i][0] for i in range(5)}) == 1
    assert {found[5][0], found[6][0]} | {found[0][0]} == {"a", "b", "c"}
    assert 7 not in found


def test_a_trial_joins_what_runs_longest_so_that_a_node_empties() -> None:
    """Node a has more trials, all about to end; the one on b runs as long as the new one will."""
    running = [*proxies("a", *[10] * 5), stay("b", 0, end=490)]
    assert started(NODES[:2], running, [PROXY])[0][0] == "b"


def test_while_a_gang_waits_one_node_drains_and_all_others_are_refilled() -> None:
    """The node that costs least to empty takes nothing new; every free GPU elsewhere is used."""
    running = [*proxies("a", *[400] * 6), *proxies("b", *[100] * 6), *proxies("c", *range(50, 350, 50))]
    found = started(NODES, running, [GANG, *[PROXY] * 9])
    assert 0 not in found
    assert Counter(node for node, _ in found.values()) == {"a": 2, "c": 2}


def test_only_what_ends_before_the_gang_can_start_is_slipped_in() -> None:
    late = [900 + 20 * i for i in range(8)]
    running = [*proxies("a", 200, 200, 200, 150, 150, 150), *proxies("b", *late), *proxies("c", *late)]
    waiting = [GANG, Need(cpus=1, gpus=1, seconds=300), Need(cpus=1, gpus=1, seconds=180)]
    assert started(NODES, running, waiting) == {2: ("a", (6,))}


def test_a_node_that_gets_free_all_at_once_is_waited_for() -> None:
    """Emptying the other would leave five GPUs idle for 50 s each; this one leaves none."""
    running = [*proxies("a", 200, 200, 200), *proxies("b", *[300] * 8)]
    assert started(NODES[:2], running, [GANG, PROXY], now=150.0) == {1: ("a", (3,))}


def test_a_gang_follows_a_gang_rather_than_emptying_one_more_node() -> None:
    """The one node on which a gang ends soon is promised; GPUs that get free elsewhere are filled."""
    gang = stay("a", *range(8), end=200)
    running = [gang, *proxies("b", *[90 * i for i in range(1, 8)]), *proxies("c", *[500] * 8)]
    assert started(NODES, running, [GANG, PROXY]) == {1: ("b", (7,))}


def test_when_many_gangs_wait_one_more_node_is_emptied() -> None:
    """Patience ends: behind five others a gang would wait for 2,600 s."""
    gang = stay("a", *range(8), end=100)
    running = [gang, *proxies("b", *[100] * 7), *proxies("c", *[90 * i for i in range(1, 9)])]
    assert started(NODES, running, [PROXY]) == {0: ("b", (7,))}
    assert started(NODES, running, [*[GANG] * 6, PROXY]) == {}


def test_a_stream_of_small_trials_never_starves_a_gang() -> None:
    """Small ones wait at every moment; the gang starts when what ran on one node has ended."""
    rng = random.Random(0)
    running = [stay(n.name, gpu, end=rng.uniform(0, 500)) for n in NODES for gpu in range(8)]
    first_drain = max(min(max(s.end for s in running if s.node == n.name) for n in NODES), 0.0)
    now = 0.0
    while True:
        now = min(s.end for s in running)
        running = [s for s in running if s.end > now]
        waiting = [GANG] + [Need(cpus=1, gpus=1, seconds=rng.uniform(400, 600)) for _ in range(30)]
        found = tuple(place(NODES, running, waiting, now))
        if any(p.index == 0 for p in found):
            break
        for p in found:
            running.append(stay(p.node, *p.gpu_ids, end=now + waiting[p.index].seconds))
        assert now <= 500, "starved"
    assert first_drain <= now <= 500


def test_a_trial_that_runs_longer_than_expected_still_holds_its_place() -> None:
    """And nobody knows for how long: not even the shortest trial slips in before the gang that waits for it."""
    running = proxies("a", *[10] * 8)
    only = (NODES[0],)
    assert started(only, running, [PROXY], now=1000.0) == {}
    short = Need(cpus=1, gpus=1, seconds=0.5)
    assert started(only, running[1:], [GANG, PROXY, short], now=1000.0) == {}
    assert started(only, running[1:], [PROXY], now=1000.0) == {0: ("a", (0,))}


def test_cores_are_promised_too() -> None:
    """Without GPUs: a trial of many cores is not starved by small ones, which slip in while they end in time."""
    node = (Node(name="a", cpus=8, gpus=0),)
    running = [Stay(node="a", cpus=6, gpu_ids=(), share=0, start=0, end=100)]
    waiting = [Need(cpus=8, gpus=0, seconds=50), *(Need(cpus=1, gpus=0, seconds=s) for s in (120, 80))]
    assert started(node, running, waiting) == {2: ("a", ())}


def test_a_lost_node_is_nowhere_to_start_and_what_ran_there_is_forgotten() -> None:
    running = [*proxies("a", *[100] * 8), *proxies("gone", *[100] * 8)]
    assert started(NODES[:2], running, [GANG]) == {0: ("b", tuple(range(8)))}
