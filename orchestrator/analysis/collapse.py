"""Attention collapse: how alike the attention maps of successive blocks are, over the trials of each arm.

Uniform maps are alike wherever they come from, so a similarity says little without its baselines: uniform
maps, and independent ones that are flat or peaky (`baselines`).

Source: Zhou et al. 2021, DeepViT, https://arxiv.org/abs/2103.11886, section 3.

Shape suffixes: L blocks, K blocks after the first, H heads, T tokens, R rows of a map, C columns.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from orchestrator.stats.intervals import CONFIDENCE, Estimate
from orchestrator.trials.records import Record
from trainables.base import Frozen

Maps = Literal["softmax", "transformed"]
Tokens = Literal["all", "patches"]
#: A value per block after the first, and one per block.
Values = tuple[float, ...]

#: Fewest onsets that get an interval.
MIN_ONSETS = 3

#: Columns over which a baseline is averaged. The standard error is then below 0.002.
_BASELINE_COLUMNS = 20_000
#: Standard deviation of the normal scores of independent maps.
SPREADS = {"flat": 0.8, "peaky": 1.5}


class BlockSimilarity(Frozen):
    """The similarity of one trial's maps, as means over images, tokens and, where not told otherwise, heads.

    Attributes:
      maps: as softmax leaves them, or as a map transform such as re-attention does.
      tokens: all, or all but the class token.
      num_tokens: length of a column of a map.
      matrix: mean cosine of the columns, by pair of blocks.
      similarity: the part of the matrix beside its diagonal: of each block after the first to the one before.
      share_similar: share of (image, head, token) triples whose similarity to the block before is above the
        threshold, by block after the first.
      entropy: mean entropy of a row over that of a uniform row, by block. None for transformed maps.
      matrix_by_head, similarity_by_head, share_similar_by_head, entropy_by_head: the same of each head.
    """

    maps: Maps
    tokens: Tokens
    num_tokens: int
    matrix: tuple[Values, ...]
    similarity: Values
    share_similar: Values
    entropy: Values | None
    matrix_by_head: tuple[tuple[Values, ...], ...]
    similarity_by_head: tuple[Values, ...]
    share_similar_by_head: tuple[Values, ...]
    entropy_by_head: tuple[Values, ...] | None


class TrialMaps(Frozen):
    """The attention maps of one trial.

    Attributes:
      trial, name, cell, arm, point, replicate, role: of the trial, as in the plan. A trial that several arms
        share is listed for each. The arm of a first stage has a note.
      weights: digest of the weights, as in the journal.
      num_images: images of the selection split that were looked at.
      num_blocks, num_heads: of the network.
      found: the maps of softmax, then the transformed ones if there are any; each of all tokens, then of
        patches alone.
    """

    trial: str
    name: str
    cell: str
    arm: str
    point: int
    replicate: int
    role: str
    weights: str
    num_images: int
    num_blocks: int
    num_heads: int
    found: tuple[BlockSimilarity, ...]


class Collapse(Frozen):
    """The contents of collapse.json without what follows from them.

    Attributes:
      threshold: the similarity from which on two maps count as alike.
      trials: in the order of the plan.
    """

    format: Literal[1] = 1
    threshold: float
    trials: tuple[TrialMaps, ...]


def block_similarity(
    maps: Maps,
    tokens: Tokens,
    num_tokens: int,
    matrix_HLL: NDArray[np.float64],
    share_HK: NDArray[np.float64],
    entropy_HL: NDArray[np.float64] | None,
) -> BlockSimilarity:
    """Returns the values by head and their means over heads, with six digits."""
    similarity_HK = np.diagonal(matrix_HLL, offset=1, axis1=1, axis2=2)
    return BlockSimilarity(
        maps=maps,
        tokens=tokens,
        num_tokens=num_tokens,
        matrix=_six_digits(matrix_HLL.mean(0)),
        similarity=_six_digits(similarity_HK.mean(0)),
        share_similar=_six_digits(share_HK.mean(0)),
        entropy=None if entropy_HL is None else _six_digits(entropy_HL.mean(0)),
        matrix_by_head=_six_digits(matrix_HLL),
        similarity_by_head=_six_digits(similarity_HK),
        share_similar_by_head=_six_digits(share_HK),
        entropy_by_head=None if entropy_HL is None else _six_digits(entropy_HL),
    )


def _six_digits(values: NDArray[np.float64]) -> Any:
    if values.ndim:
        return tuple(_six_digits(part) for part in values)
    return float(f"{values:.6g}")


# ---------------------------------------------------------------------------------------------------
# Baselines


@dataclass(frozen=True, slots=True)
class Level:
    """The numbers of maps without collapse: similarity, share of similar triples, entropy over log T."""

    similarity: float
    share_similar: float
    entropy: float


@functools.cache
def baselines(num_tokens: int, threshold: float) -> dict[str, Level]:
    """Returns the levels of uniform maps, and of independent maps that are flat or peaky, by name.

    Independent maps are softmax of normal scores. Their similarity approaches exp(-sd^2) as tokens become
    many, and is higher with few. They are drawn with a fixed seed, at this number of tokens.
    """
    levels = {"uniform": Level(1.0, 1.0, 1.0)}
    return levels | {name: _independent(sd, num_tokens, threshold) for name, sd in SPREADS.items()}


def _independent(sd: float, num_tokens: int, threshold: float) -> Level:
    rng = np.random.default_rng([num_tokens, round(100 * sd)])
    num_pairs = math.ceil(_BASELINE_COLUMNS / num_tokens)
    # A few rows at a time, because a map of many tokens is large.
    num_rows = max(1, 2**20 // num_tokens)
    cosines, entropies = [], []
    for _ in range(num_pairs):
        products_C, squares_2C = np.zeros(num_tokens), np.zeros((2, num_tokens))
        for start in range(0, num_tokens, num_rows):
            size = (2, min(num_rows, num_tokens - start), num_tokens)
            rows_2RC = special.softmax(sd * rng.standard_normal(size, dtype=np.float32), axis=-1)
            products_C += rows_2RC.prod(0).sum(0)
            squares_2C += np.square(rows_2RC).sum(1)
            entropies.append(special.entr(rows_2RC).sum(-1).ravel())
        cosines.append(products_C / np.sqrt(squares_2C.prod(0)))
    found = np.concatenate(cosines)
    # A single token can only attend to itself, which is uniform.
    most = math.log(num_tokens)
    entropy = float(np.concatenate(entropies).mean() / most) if most else 1.0
    return Level(float(found.mean()), float((found > threshold).mean()), entropy)


# ---------------------------------------------------------------------------------------------------
# Over trials


def onset(similarity: Sequence[float], threshold: float) -> int | None:
    """Returns the first block from which on each is at least so similar to the one before. None if none is.

    Args:
      similarity: to the block before, from the second block on. Blocks count from 1, so an onset is 2 or
        more.
      threshold: of collapse.
    """
    below = [place for place, value in enumerate(similarity) if value < threshold]
    first = below[-1] + 1 if below else 0
    return first + 2 if first < len(similarity) else None


@dataclass(frozen=True, slots=True)
class ArmMaps:
    """The maps of an arm's trials in one cell, of one kind.

    Attributes:
      cell, arm, maps, tokens: which.
      num_tokens: of most of the trials; means by block are over those with as many tokens and blocks.
      num_blocks, num_heads: likewise.
      num_trials: all trials.
      num_averaged: trials in the means by block.
      matrix: mean over trials, by pair of blocks.
      similarity, share_similar, entropy: means over trials, as in `BlockSimilarity`.
      onsets: onset block of each trial that has one.
      onset: their mean, with Student's interval over trials from MIN_ONSETS onsets on, else None.
      baselines: see `baselines`.
    """

    cell: str
    arm: str
    maps: Maps
    tokens: Tokens
    num_tokens: int
    num_blocks: int
    num_heads: int
    num_trials: int
    num_averaged: int
    matrix: tuple[Values, ...]
    similarity: Values
    share_similar: Values
    entropy: Values | None
    onsets: tuple[int, ...]
    onset: Estimate | None
    baselines: Mapping[str, Level]

    @property
    def mean_similarity(self) -> float | None:
        """The mean over blocks of the similarity to the block before. None of a single block."""
        return _mean(self.similarity)

    @property
    def mean_share_similar(self) -> float | None:
        """The share of similar triples over all blocks after the first."""
        return _mean(self.share_similar)

    @property
    def mean_entropy(self) -> float | None:
        """The mean entropy over all blocks. None of transformed maps."""
        return _mean(self.entropy or ())


def arm_maps(collapse: Collapse) -> list[ArmMaps]:
    """Returns the maps of each arm in each cell, in the order of the trials."""
    groups: dict[tuple[str, str, Maps, Tokens], list[tuple[TrialMaps, BlockSimilarity]]] = {}
    for trial in collapse.trials:
        for found in trial.found:
            key = (trial.cell, trial.arm, found.maps, found.tokens)
            groups.setdefault(key, []).append((trial, found))
    # Those of an arm stay together, where trials of arms alternate.
    arms = list(dict.fromkeys((trial.cell, trial.arm) for trial in collapse.trials))
    ordered = sorted(groups.items(), key=lambda item: arms.index(item[0][:2]))
    return [_arm(*key, group, collapse.threshold) for key, group in ordered]


def _arm(
    cell: str,
    arm: str,
    maps: Maps,
    tokens: Tokens,
    group: Sequence[tuple[TrialMaps, BlockSimilarity]],
    threshold: float,
) -> ArmMaps:
    shapes = [(trial.num_blocks, trial.num_heads, found.num_tokens) for trial, found in group]
    [(shape, num_averaged)] = Counter(shapes).most_common(1)
    alike = [found for (_, found), own in zip(group, shapes, strict=True) if own == shape]
    onsets = tuple(block for _, found in group if (block := onset(found.similarity, threshold)) is not None)
    entropies = [found.entropy for found in alike if found.entropy is not None]
    return ArmMaps(
        cell=cell,
        arm=arm,
        maps=maps,
        tokens=tokens,
        num_tokens=shape[2],
        num_blocks=shape[0],
        num_heads=shape[1],
        num_trials=len(group),
        num_averaged=num_averaged,
        matrix=_over_trials([found.matrix for found in alike]),
        similarity=_over_trials([found.similarity for found in alike]),
        share_similar=_over_trials([found.share_similar for found in alike]),
        entropy=_over_trials(entropies) if entropies else None,
        onsets=onsets,
        onset=onset_estimate(onsets, shape[0]),
        baselines=baselines(shape[2], threshold),
    )


def onset_estimate(onsets: Sequence[int], num_blocks: int) -> Estimate | None:
    """Returns the mean onset block with Student's interval over trials. None below MIN_ONSETS onsets.

    The interval ends where onsets can lie: at the second block, and at the last of `num_blocks`. There is no
    interval if all are alike, because then nothing is known of their spread.
    """
    count = len(onsets)
    if count < MIN_ONSETS:
        return None
    mean, sd = float(np.mean(onsets)), float(np.std(onsets, ddof=1))
    if sd == 0:
        return Estimate(mean, because="all values are alike")
    half = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(count)
    return Estimate(mean, max(mean - half, 2.0), min(mean + half, float(num_blocks)))


def _over_trials(values: Sequence[Any]) -> Any:
    """Returns the mean of nested values of one shape, as nested tuples."""
    return _tuples(np.mean(np.asarray(values, dtype=np.float64), axis=0))


def _tuples(values: NDArray[np.float64]) -> Any:
    return tuple(_tuples(part) for part in values) if values.ndim else float(values)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def outdated(collapse: Collapse, records: Mapping[str, Record]) -> list[str]:
    """Returns the names of trials whose weights are no longer those that were looked at."""
    return list(dict.fromkeys(_changed(collapse.trials, records)))


def _changed(trials: Iterable[TrialMaps], records: Mapping[str, Record]) -> Iterable[str]:
    for trial in trials:
        record = records.get(trial.trial)
        if record is None or record.weights != trial.weights:
            yield trial.name
