"""Pools of candidate points, as rows of units. Pure functions of a random generator."""

from __future__ import annotations

import math

import numpy as np

from search.surrogate.encoding import Array, Encoder
from space.params import ChoiceParam

NUM_RANDOM, NUM_LOCAL, NUM_CROSSED = 160, 320, 80
LEADER_DECAY = 0.75  # a leader is picked so many times as often as the one before it
STEP = (0.02, 0.3)  # a moved coordinate's step, as a share of its range, is log-uniform between these
MAX_RATE = 0.4  # and at most such a share of coordinates moves at once
REDRAW = 0.05  # chance that a moved number is drawn anew instead


def random_points(encoder: Encoder, count: int, rng: np.random.Generator) -> Array:
    """Uniform points."""
    return encoder.snap(rng.random((count, len(encoder.params))))


def pool(encoder: Encoder, leaders: Array, rng: np.random.Generator) -> Array:
    """Random points, leaders (best first) moved a little, and crossings of two leaders."""
    weights = LEADER_DECAY ** np.arange(len(leaders))
    picks = rng.choice(len(leaders), size=NUM_LOCAL + 2 * NUM_CROSSED, p=weights / weights.sum())
    local = mutate(encoder, leaders[picks[:NUM_LOCAL]], rng)
    one, two = leaders[picks[NUM_LOCAL : NUM_LOCAL + NUM_CROSSED]], leaders[picks[NUM_LOCAL + NUM_CROSSED :]]
    crossed = mutate(encoder, np.where(rng.random(one.shape) < 0.5, one, two), rng)
    return np.concatenate([random_points(encoder, NUM_RANDOM, rng), local, crossed])


def mutate(encoder: Encoder, units: Array, rng: np.random.Generator) -> Array:
    """Move at least one coordinate of each point, by small or large normal steps; choices are drawn anew.

    The number of moved coordinates and the size of the step differ from point to point, so that one pool holds fine
    and coarse moves. What leaves the range is reflected. A parameter that was inactive starts anywhere.
    """
    shape = units.shape
    known = np.where(np.isnan(units), rng.random(shape), units)
    rate = np.exp(rng.uniform(math.log(1 / shape[1]), math.log(max(MAX_RATE, 1 / shape[1])), size=(shape[0], 1)))
    moved = rng.random(shape) < rate
    moved[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = True
    width = np.exp(rng.uniform(math.log(STEP[0]), math.log(STEP[1]), size=(shape[0], 1)))
    stepped = np.abs(known + width * rng.standard_normal(shape))
    stepped = np.clip(np.where(stepped > 1, 2 - stepped, stepped), 0, 1)
    is_choice = np.array([isinstance(param, ChoiceParam) for param in encoder.params])
    redrawn = is_choice[None, :] | (rng.random(shape) < REDRAW)
    return encoder.snap(np.where(moved, np.where(redrawn, rng.random(shape), stepped), known))


def farthest(encoder: Encoder, points: Array, known: Array) -> Array:
    """Distance of each point to the nearest known one; 1 where nothing is known."""
    if not len(known):
        return np.ones(len(points))
    a, b = encoder.features(points), encoder.features(known)
    squares = ((a[:, None, :] - b[None, :, :]) ** 2).sum(2)
    return np.asarray(np.sqrt(squares.min(1)))
