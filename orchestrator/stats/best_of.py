"""The best of k trials of an arm: its mean and median, a band for the median, and the optimism of a minimum.

Errors are in percent, lower is better, as in `Result.error_pct`: a diverged trial counts as 100. `n` is the
number of trials (points). `k` is a budget: the size of a sweep drawn from the same space.

The band is for the median of the best of k, not for its mean. The mean depends on the lower end of the
support, about which no finite sample is informative. A distribution-free lower bound on the mean must allow
for about 6 / n of the space at 0 % error, which costs whole points of error even at k = 1. The median is a
quantile of the errors, and its bounds are observed errors. The band ends at the budget where its lower bound
would have to be 0 %.

All functions assume independent trials. Points of a scrambled Sobol sequence are spread more evenly, so the
coverage is above nominal (`python -m benchmarks.coverage`).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
#: Range of an error, which is a share of images in percent.
SUPPORT_PCT = (0.0, 100.0)


@dataclass(frozen=True, slots=True)
class BestOf:
    """The best of `budget` trials.

    Attributes:
      budget: k.
      mean_pct: the unbiased estimate of its expectation.
      median_pct: the estimate of its median.
      low_pct, high_pct: the band for the median at k, simultaneous over all k.
    """

    budget: int
    mean_pct: float
    median_pct: float
    low_pct: float
    high_pct: float


@dataclass(frozen=True, slots=True)
class TuningCurve:
    """Best of k for k = 1..n; entry k - 1 of every array belongs to k.

    Attributes:
      num_trials: n.
      confidence: the probability that the band contains the true median curve at every k at once.
      largest_budget: the last k with a lower bound that was observed; 0 if there are too few trials for any.
        Figures may draw larger budgets in grey, but no number beyond it is reported.
      mean_pct: the unbiased estimate of the expectation.
      median_pct: the estimate of the median.
      low_pct, high_pct: the band for the median; 0 and 100 where the trials give no bound.
    """

    num_trials: int
    confidence: float
    largest_budget: int
    mean_pct: Floats
    median_pct: Floats
    low_pct: Floats
    high_pct: Floats

    def at(self, budget: int) -> BestOf | None:
        """Returns the numbers at a budget. None if it is above `largest_budget`.

        Raises:
          ValueError: the budget is below 1.
        """
        if budget < 1:
            raise ValueError(f"a budget is 1 or more, got {budget}")
        if budget > self.largest_budget:
            return None
        index = budget - 1
        return BestOf(
            budget,
            float(self.mean_pct[index]),
            float(self.median_pct[index]),
            float(self.low_pct[index]),
            float(self.high_pct[index]),
        )


def checked_errors(errors_pct: Sequence[float] | Floats) -> Floats:
    """Returns the errors in ascending order, after a check that they are percentages."""
    ordered = np.sort(np.asarray(errors_pct, dtype=np.float64))
    if ordered.size == 0:
        raise ValueError("the best of no trials is not defined")
    low, high = SUPPORT_PCT
    if num_bad := int(np.count_nonzero(~((ordered >= low) & (ordered <= high)))):
        raise ValueError(f"{num_bad} of {ordered.size} errors are not within {low:g}..{high:g} %")
    return ordered


def _checked_budgets(budgets: Sequence[int] | None, num_trials: int) -> NDArray[np.int64]:
    found = np.arange(1, num_trials + 1) if budgets is None else np.asarray(budgets, dtype=np.int64)
    if found.size and not 1 <= found.min() <= found.max() <= num_trials:
        raise ValueError(f"budgets are 1..{num_trials}, got {found.min()}..{found.max()}")
    return found


def best_of(errors_pct: Sequence[float] | Floats, budgets: Sequence[int] | None = None) -> Floats:
    """Returns the mean lowest error over all subsets of k trials, which is unbiased for E[best of k].

        sum_i y_(i) C(n - i, k - 1) / C(n, k),  y_(1) <= ... <= y_(n)

    The weights need no factorials: w_1 = k / n and w_(i+1) = w_i (n - i - k + 1) / (n - i).

    Args:
      errors_pct: one per trial, in any order.
      budgets: values of k, each in 1..n. None stands for all of them.

    Returns:
      One number per budget: the mean of the errors at k = 1, falling to their minimum at k = n.

    Raises:
      ValueError: there are no errors, an error is outside 0..100, or a budget is outside 1..n.

    Source: Tang et al. 2020, "Showing Your Work Doesn't Always Work", https://arxiv.org/abs/2004.13705
    """
    ordered = checked_errors(errors_pct)
    ks = _checked_budgets(budgets, ordered.size)
    # In chunks, because all budgets of thousands of trials at once would be a matrix of gigabytes.
    chunks = [best_of_weights(ordered.size, ks[i : i + 256]) @ ordered for i in range(0, ks.size, 256)]
    return np.concatenate(chunks) if chunks else np.empty(0)


def best_of_weights(num_trials: int, budgets: NDArray[np.int64]) -> Floats:
    """Returns weights (budgets, trials). Their product with the sorted errors is the best of each budget."""
    k, ranks = budgets[:, None], np.arange(1, num_trials)
    weights = np.empty((k.size, num_trials))
    weights[:, :1] = k / num_trials
    weights[:, 1:] = np.maximum(num_trials - ranks - k + 1, 0) / (num_trials - ranks)
    return np.asarray(np.cumprod(weights, axis=1), dtype=np.float64)


def band_probability(low: Floats, high: Floats) -> float:
    """Returns P(low_i <= U_(i) <= high_i for all i) for the order statistics of n independent uniforms.

    The number of uniforms below t is a Poisson process of rate n, given that it reaches n at t = 1. The
    distribution of this count is propagated from bound to bound, without the counts that violate a bound.
    All terms are positive, so the result is exact up to rounding.

    Args:
      low, high: bounds in ascending order, within 0..1.

    Source: Moscovich and Nadler 2017, Stat. Probab. Lett. 123, 177-182, https://arxiv.org/abs/1503.04363
    """
    count = low.size
    log_factorial = special.gammaln(np.arange(count + 1) + 1)
    times = np.concatenate([low, high])
    # mass[j] is the probability that all bounds up to `now` hold and that `first + j` uniforms are below it.
    mass, first, allowed, now = np.ones(1), 0, 0, 0.0

    def carried(until: float) -> Floats:
        width = allowed - first + 1
        if until <= now or width <= 0:
            return mass[: max(width, 0)]
        rate, new = count * (until - now), np.arange(width)
        steps = np.exp(new * math.log(rate) - rate - log_factorial[:width])
        return np.convolve(mass, steps)[:width]

    for event in np.argsort(times, kind="stable"):
        mass, now = carried(float(times[event])), max(now, float(times[event]))
        if event < count:  # from here on, one more uniform may be below
            allowed += 1
        else:  # from here on, one more uniform must be below
            first, mass = first + 1, mass[1:]
        if mass.size == 0:
            return 0.0
    mass = carried(1.0)
    at_end = count - first
    if at_end >= mass.size:
        return 0.0
    return float(mass[at_end] / math.exp(count * math.log(count) - count - log_factorial[count]))


def _highest_density(num_trials: int, miss: float) -> tuple[Floats, Floats]:
    """Returns, per rank i, the shortest interval with probability 1 - `miss` under Beta(i, n + 1 - i)."""
    rank = np.arange(1, num_trials + 1, dtype=np.float64)
    alpha, beta = rank, num_trials + 1 - rank
    # Bisects the part of `miss` below the interval: the shortest interval has equal densities at both ends.
    least, most = np.zeros(num_trials), np.full(num_trials, miss)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(32):
            below = (least + most) / 2
            low = special.betaincinv(alpha, beta, below)
            high = 1 - special.betaincinv(beta, alpha, miss - below)
            uphill = (alpha - 1) * (np.log(high) - np.log(low)) + (beta - 1) * (
                np.log1p(-high) - np.log1p(-low)
            ) > 0
            least, most = np.where(uphill, below, least), np.where(uphill, most, below)
    # The densities of the first and the last rank are monotone, so one end is that of the support.
    if num_trials > 1:
        low[0], high[0] = 0.0, -math.expm1(math.log(miss) / num_trials)
        low[-1], high[-1] = 1 - high[0], 1.0
    return np.maximum.accumulate(low), np.maximum.accumulate(high)


@functools.lru_cache(maxsize=256)
def _calibrated(num_trials: int, confidence: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    alpha = 1 - confidence

    def excess(log_miss: float) -> float:
        return band_probability(*_highest_density(num_trials, math.exp(log_miss))) - confidence

    # Bonferroni's level gives too wide a band, and the level of a single interval too narrow a one.
    bounds = math.log(alpha / num_trials), math.log(alpha)
    if num_trials == 1:
        log_miss = bounds[1]
    elif excess(bounds[0]) <= 0:  # Bonferroni's level is exact for two trials, up to rounding
        log_miss = bounds[0]
    else:
        log_miss = optimize.brentq(excess, *bounds, xtol=1e-6)
    low, high = _highest_density(num_trials, math.exp(log_miss))
    return tuple(low.tolist()), tuple(high.tolist())


def order_statistic_band(num_trials: int, confidence: float = CONFIDENCE) -> tuple[Floats, Floats]:
    """Returns bounds on F(y_(i)), i = 1..n, that hold for all i at once with exactly this confidence.

    F(y_(i)) is distributed as the i-th of n ordered uniforms, Beta(i, n + 1 - i), for every continuous F.
    Each rank gets its shortest interval at one common level. The level is chosen such that all n intervals
    hold with the given confidence (`band_probability`). If F has jumps (ties, diverged trials), the bounds
    on quantiles hold with at least that confidence.

    The intervals are shortest instead of equal-tailed, because the whole error probability of the lowest rank
    is then on the side that bounds the peak: F(y_(1)) < 0.087 at n = 64. The band of constant width by
    Dvoretzky, Kiefer, Wolfowitz and Massart, sqrt(ln(2 / alpha) / 2n), gives 0.170 there, and supports k = 3
    instead of 7.

    Raises:
      ValueError: there is no trial, or the confidence is outside (0, 1).

    Source: Learned-Miller and DeStefano 2008, IEEE Trans. Inf. Theory 54, for bands from order statistics;
      Lourie, Cho and He 2023, "Show Your Work with Confidence", https://arxiv.org/abs/2311.09480, for
      shortest intervals and for tuning curves.
    """
    if num_trials < 1 or not 0 < confidence < 1:
        raise ValueError(f"need a trial and a confidence within (0, 1), got {num_trials}, {confidence}")
    low, high = _calibrated(num_trials, confidence)
    return np.array(low), np.array(high)


def largest_budget(num_trials: int, confidence: float = CONFIDENCE) -> int:
    """Returns the last k at which the lower bound for the median of the best of k is an observed error.

    At larger k, settings too rare to be in the sample could be the median best, with any error. The limit
    depends on n alone, about n / 8, so it is known before a trial runs.

    Raises:
      ValueError: as `order_statistic_band`.
    """
    _, high = order_statistic_band(num_trials, confidence)
    # The largest k with 1 - 0.5^(1/k) > high_1; the loop corrects a k that rounding made too large.
    budget = int(math.log(0.5) / math.log1p(-high[0])) if high[0] < 1 else 0
    while budget > 0 and median_level(np.array([budget]))[0] <= high[0]:
        budget -= 1
    return budget


def median_level(budgets: NDArray[np.int64]) -> Floats:
    """Returns the level 1 - 0.5^(1/k) of the error quantile that is the median of the best of k."""
    return np.asarray(-np.expm1(math.log(0.5) / budgets))


def median_band(
    errors_pct: Sequence[float] | Floats,
    budgets: Sequence[int] | None = None,
    confidence: float = CONFIDENCE,
) -> tuple[Floats, Floats]:
    """Returns bounds on the median of the best of k, F^-1(1 - 0.5^(1/k)), for all k at once.

    Every bound is an observed error or an end of the support. The lower one is the largest error whose F is
    below the level within the band of F, the upper one the smallest error whose F reaches it. The bounds need
    no assumption about F and are invariant under monotone transformations of the error.

    Returns:
      Low and high, one per budget (1..n if None), in percent.

    Raises:
      ValueError: as `best_of` and `order_statistic_band`.
    """
    ordered = checked_errors(errors_pct)
    levels = median_level(_checked_budgets(budgets, ordered.size))
    low, high = order_statistic_band(ordered.size, confidence)
    bounded = np.concatenate([[SUPPORT_PCT[0]], ordered, [SUPPORT_PCT[1]]])
    return (
        bounded[np.searchsorted(high, levels, side="left")],
        bounded[np.searchsorted(low, levels, side="left") + 1],
    )


def tuning_curve(errors_pct: Sequence[float] | Floats, confidence: float = CONFIDENCE) -> TuningCurve:
    """Returns the best of k of an arm in a cell with its band, and the largest k that the trials support.

    The estimate of the median is the sample quantile at 1 - 0.5^(1/k), with the interpolation that is
    median-unbiased for every F (Hyndman and Fan 1996, type 8).

    Args:
      errors_pct: one per trial, in any order. A diverged trial is 100, because a curve without it would be
        too good.
      confidence: of the band.

    Raises:
      ValueError: as `best_of` and `order_statistic_band`.
    """
    ordered = checked_errors(errors_pct)
    low, high = median_band(ordered, confidence=confidence)
    levels = median_level(np.arange(1, ordered.size + 1))
    return TuningCurve(
        num_trials=ordered.size,
        confidence=confidence,
        largest_budget=largest_budget(ordered.size, confidence),
        mean_pct=best_of(ordered),
        median_pct=np.quantile(ordered, levels, method="median_unbiased"),
        low_pct=low,
        high_pct=high,
    )


@dataclass(frozen=True, slots=True)
class Optimism:
    """The optimism of the lowest error in pp: the true mean of its setting minus the observed error.

    The true value is never below 0 and never above `at_most_pct`.

    Attributes:
      noise_sd_pct: standard deviation of the noise that was assumed.
      modelled_pct: estimate for one sweep. It assumes independently drawn settings and deconvolves their
        means from the noise. It is accurate to about 0.3 noise sd, with a bias of up to 0.25.
      unbiased_pct: estimate for averages over many sweeps or cells. It is unbiased for all settings, however
        they were chosen. For a single sweep it varies by one to two noise sd, and may be below 0.
      at_most_pct: the optimism if all settings were equally good, so that noise alone decided.
    """

    noise_sd_pct: float
    modelled_pct: float
    unbiased_pct: float
    at_most_pct: float


def optimism(errors_pct: Sequence[float] | Floats, noise_sd_pct: float | None) -> Optimism | None:
    """Returns E[-noise of the setting of lowest error], for normal noise of known standard deviation s.

    `unbiased_pct` adds standard normal noise z to the errors y and splits them into two parts:

        y + a s z, which selects the winner, and  y - s z / a, which evaluates it.

    The parts are independent, so the evaluation is unbiased. Their difference at the winner,
    -s (a + 1 / a) E[z_winner | y], is unbiased for the optimism under noise of s sqrt(1 + a^2). Two values
    of a are extrapolated to a = 0, up to O(a^4).

    `modelled_pct` assumes settings drawn independently, with errors of density f = g * N(0, s^2):

        s^2 n (n - 1) integral f^2 (1 - F)^(n - 2),

    which is s^2 times the density of ties for the first place (Stein's identity for an argmin). The density g
    is estimated by maximum likelihood.

    Args:
      errors_pct: one per point.
      noise_sd_pct: standard deviation of the noise in one of these errors. For means over r replicates it is
        the standard deviation between seeds over sqrt(r). None if it was not measured.

    Returns:
      None if `noise_sd_pct` is None, because errors of single runs do not determine it.

    Raises:
      ValueError: as `best_of`, or the standard deviation is negative or not finite.

    Source: Rasines and Young 2023, "Splitting strategies for post-selection inference", Biometrika 110, for
      the split by added noise; Kiefer and Wolfowitz 1956, Ann. Math. Stat. 27, 887-906, for g.
    """
    ordered = checked_errors(errors_pct)
    if noise_sd_pct is None:
        return None
    if not 0 <= noise_sd_pct < math.inf:
        raise ValueError(f"a standard deviation is finite and not negative, got {noise_sd_pct}")
    if noise_sd_pct == 0 or ordered.size == 1:
        return Optimism(noise_sd_pct, 0.0, 0.0, 0.0)
    less, more = 0.3, 0.5
    at_less, at_more = (_halved(ordered, noise_sd_pct, share) for share in (less, more))
    return Optimism(
        noise_sd_pct=noise_sd_pct,
        modelled_pct=_deconvolved(ordered, noise_sd_pct),
        unbiased_pct=at_less - (at_more - at_less) * less**2 / (more**2 - less**2),
        at_most_pct=noise_sd_pct * _normal_maximum(ordered.size),
    )


def _normal_maximum(count: int) -> float:
    """Returns E[max of n standard normals], the integral of 1 - Phi^n - (1 - Phi)^n over x > 0."""
    at = np.linspace(0, 12, 4001)
    above = special.ndtr(-at)
    return float(np.trapezoid(-np.expm1(count * np.log1p(-above)) - above**count, at))


def _halved(ordered: Floats, noise_sd_pct: float, share: float) -> float:
    """Returns -s (a + 1 / a) E[z_i], i = argmin y_i + a s z_i, by quadrature over the minimum."""
    spread = share * noise_sd_pct
    near = ordered[ordered < ordered[0] + 12 * spread]
    at = np.linspace(near[0] - 8 * spread, near[0] + 6 * spread, 400)
    z = (at[:, None] - near) / spread
    log_above = special.log_ndtr(-z)
    others_above = np.exp(log_above.sum(axis=1, keepdims=True) - log_above)
    z_of_winner = np.trapezoid((z * np.exp(-(z**2) / 2) * others_above).sum(axis=1), z[:, 0])
    return float(-noise_sd_pct * (share + 1 / share) * z_of_winner / math.sqrt(2 * math.pi))


def _deconvolved(ordered: Floats, noise_sd_pct: float) -> float:
    """Returns s^2 n (n - 1) integral f^2 (1 - F)^(n - 2), with g by maximum likelihood on a grid."""
    # A setting 12 sd above the best has practically no chance to be the best.
    y, count = (ordered - ordered[0]) / noise_sd_pct, ordered.size
    y = y[y < 12]
    grid = np.linspace(0, y[-1], max(int(y[-1] / 0.15) + 2, 5))
    likelihood = np.exp(-((y[:, None] - grid) ** 2) / 2)
    weights = np.full(grid.size, 1 / grid.size)
    for _ in range(200):  # expectation-maximisation
        weights = weights * ((1 / (likelihood @ weights)) @ likelihood) / y.size
    weights *= y.size / count
    at = np.linspace(-6, y[-1] + 3, 1200)
    z = at[:, None] - grid
    density = np.exp(-(z**2) / 2) @ weights / math.sqrt(2 * math.pi)
    above = 1 - special.ndtr(z) @ weights
    ties = np.trapezoid(density**2 * above ** (count - 2), at)
    return float(noise_sd_pct * count * (count - 1) * ties)
