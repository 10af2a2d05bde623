"""Compiled loops over the filters of a weight, and over the channels of an output, in float32.

Sums are made in the order in which torch and oneDNN make them, one number after the other, so they have the same bits.
One such chain waits for each addition; eight side by side do not, and are what eight filters are taken together for.
"""

from functools import cache, partial

import numpy as np

from fedmef_dist.base.compiled import compiled, fill_cache

_COLUMNS = 512  # of eight filters' terms, which stay in the processor's first cache
_NUMBER = np.float32


@cache
def prepare() -> None:
    """Compiles the loops, or loads what an earlier process has compiled."""
    fill_cache(measure, "filters", _call_all)


def _call_all() -> None:
    rows, mask, numbers = np.ones((1, 9), np.float32), np.ones((1, 9), np.uint8), np.ones((1, 1), np.float32)
    measure(rows, mask, numbers, numbers, *(numbers.copy() for _ in range(4)), _NUMBER(1), _NUMBER(1), True)
    sum_products(rows, rows, mask, numbers, numbers.copy(), numbers.copy())
    weigh(rows, mask, numbers, numbers, rows.copy())
    shift(rows.copy(), rows, mask, numbers, numbers, numbers, numbers)
    sum_channels(rows, np.zeros(9, np.float32))


@compiled
def measure(
    theta: np.ndarray,
    mask: np.ndarray,
    sums: np.ndarray,
    count: np.ndarray,
    mean: np.ndarray,
    inverse_count: np.ndarray,
    scale: np.ndarray,
    squares: np.ndarray,
    gamma: np.float32,
    epsilon: np.float32,
    centre: bool,
) -> None:
    """What the normalisation knows of every filter: ``Filters`` says what the last four are.

    Args:
        theta: float32 (O, n).
        mask: uint8 (O, n), or (1, n) for all filters.
        sums: float32 (O, 1), of theta.
        count: float32 (O, 1), active weights.
        mean: float32 (O, 1); gets what is subtracted.
        inverse_count: float32 (O, 1); gets the result, as the next two do.
        scale: float32 (O, 1).
        squares: float32 (O, 1).
        gamma: constant of the normalisation.
        epsilon: constant of the normalisation.
        centre: whether the mean is subtracted.
    """
    one = _NUMBER(1)
    for row in range(theta.shape[0]):
        inverse_count[row, 0] = one / count[row, 0] if centre and count[row, 0] > one else _NUMBER(0)
        mean[row, 0] = sums[row, 0] * inverse_count[row, 0]
    sum_squares(theta, mask, mean, squares)
    for row in range(theta.shape[0]):
        found, is_full = squares[row, 0], count[row, 0] > one
        least = epsilon if found < epsilon else found  # which is NaN if that is
        scale[row, 0] = gamma * (one / np.sqrt(least)) if is_full else one
        if not (is_full and found > epsilon):
            squares[row, 0] = np.inf


@compiled
def sum_squares(theta: np.ndarray, mask: np.ndarray, mean: np.ndarray, squares: np.ndarray) -> None:
    """Squared deviations of every filter, summed.

    Args:
        theta: float32 (O, n).
        mask: uint8 (O, n), or (1, n) for all filters.
        mean: float32 (O, 1).
        squares: float32 (O, 1); gets the sums.
    """
    terms, columns = np.empty((8, _COLUMNS), theta.dtype), theta.shape[1]
    for row in range(0, theta.shape[0], 8):
        count, sums = min(8, theta.shape[0] - row), np.zeros(8, theta.dtype)
        for start in range(0, columns, _COLUMNS):
            stop = min(start + _COLUMNS, columns)
            for k in range(count):
                some, active = theta[row + k, start:stop], mask[(row + k) % mask.shape[0], start:stop]
                centre, own = mean[row + k, 0], terms[k]
                for i in range(some.size):
                    deviation = (some[i] - centre) * _NUMBER(active[i])
                    own[i] = deviation * deviation
            _add_up(terms, stop - start, sums)
        squares[row : row + count, 0] = sums[:count]


@compiled
def sum_products(
    grad: np.ndarray, theta: np.ndarray, mask: np.ndarray, mean: np.ndarray, along: np.ndarray, total: np.ndarray
) -> None:
    """Of every filter the gradient's products with the deviations, and its active elements, summed.

    Args:
        grad: float32 (O, n).
        theta: float32 (O, n).
        mask: uint8 (O, n), or (1, n) for all filters.
        mean: float32 (O, 1).
        along: float32 (O, 1); gets the sums of the products.
        total: float32 (O, 1); gets the sums of the active elements.
    """
    products, actives = np.empty((8, _COLUMNS), theta.dtype), np.empty((8, _COLUMNS), theta.dtype)
    columns = theta.shape[1]
    for row in range(0, theta.shape[0], 8):
        count = min(8, theta.shape[0] - row)
        along_sums, total_sums = np.zeros(8, theta.dtype), np.zeros(8, theta.dtype)
        for start in range(0, columns, _COLUMNS):
            stop = min(start + _COLUMNS, columns)
            for k in range(count):
                some, active = theta[row + k, start:stop], mask[(row + k) % mask.shape[0], start:stop]
                steps, centre, product, own = grad[row + k, start:stop], mean[row + k, 0], products[k], actives[k]
                for i in range(some.size):
                    is_active = _NUMBER(active[i])
                    product[i] = steps[i] * ((some[i] - centre) * is_active)
                    own[i] = steps[i] * is_active
            _add_up(products, stop - start, along_sums)
            _add_up(actives, stop - start, total_sums)
        along[row : row + count, 0] = along_sums[:count]
        total[row : row + count, 0] = total_sums[:count]


@compiled
def _add_up(terms: np.ndarray, count: int, sums: np.ndarray) -> None:
    """Adds the first ``count`` numbers of each of the eight rows of ``terms`` to its sum, one after the other."""
    t0, t1, t2, t3, t4, t5, t6, t7 = terms[0], terms[1], terms[2], terms[3], terms[4], terms[5], terms[6], terms[7]
    s0, s1, s2, s3, s4, s5, s6, s7 = sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], sums[6], sums[7]
    for i in range(count):
        s0 += t0[i]
        s1 += t1[i]
        s2 += t2[i]
        s3 += t3[i]
        s4 += t4[i]
        s5 += t5[i]
        s6 += t6[i]
        s7 += t7[i]
    sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], sums[6], sums[7] = s0, s1, s2, s3, s4, s5, s6, s7


@compiled
def weigh(theta: np.ndarray, mask: np.ndarray, mean: np.ndarray, factor: np.ndarray, weight: np.ndarray) -> None:
    """The weight that acts.

    Args:
        theta: float32 (O, n).
        mask: uint8 (O, n), or (1, n) for all filters.
        mean: float32 (O, 1).
        factor: float32 (O, 1), of the deviations.
        weight: float32 (O, n); gets the result.
    """
    for row in range(theta.shape[0]):
        some, active, own = theta[row], mask[row % mask.shape[0]], weight[row]
        centre, times = mean[row, 0], factor[row, 0]
        for i in range(some.size):
            own[i] = (some[i] - centre) * _NUMBER(active[i]) * times


@partial(compiled, fastmath={"contract"})  # torch rounds once behind the product and the difference, too
def shift(
    grad: np.ndarray,
    theta: np.ndarray,
    mask: np.ndarray,
    mean: np.ndarray,
    shifts: np.ndarray,
    slopes: np.ndarray,
    factor: np.ndarray,
) -> None:
    """From the gradient of the weight that acts to that of the raw one, in its place.

    Args:
        grad: float32 (O, n).
        theta: float32 (O, n).
        mask: uint8 (O, n), or (1, n) for all filters.
        mean: float32 (O, 1).
        shifts: float32 (O, 1), is subtracted.
        slopes: float32 (O, 1), with the deviations is subtracted, too.
        factor: float32 (O, 1), of what is left.
    """
    for row in range(grad.shape[0]):
        own, some, active = grad[row], theta[row], mask[row % mask.shape[0]]
        centre, less, slope, times = mean[row, 0], shifts[row, 0], slopes[row, 0], factor[row, 0]
        for i in range(own.size):
            deviation = (some[i] - centre) * _NUMBER(active[i])
            own[i] = ((own[i] - less) - deviation * slope) * times


@compiled
def sum_channels(pixels: np.ndarray, sums: np.ndarray) -> None:
    """Adds the rows of ``pixels``, float32 (P, C), to ``sums``, float32 (C,), one after the other."""
    quads = pixels.shape[0] // 4 * 4
    for row in range(0, quads, 4):
        first, second, third, fourth = pixels[row], pixels[row + 1], pixels[row + 2], pixels[row + 3]
        for i in range(sums.size):
            sums[i] = (((sums[i] + first[i]) + second[i]) + third[i]) + fourth[i]
    for row in range(quads, pixels.shape[0]):
        own = pixels[row]
        for i in range(sums.size):
            sums[i] += own[i]
