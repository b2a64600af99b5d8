"""Distances between samples: exact values, intervals and floors."""

import math
from functools import partial

import pytest
import torch
from scipy.stats import energy_distance, wasserstein_distance

from workflow.diffusion.distances import (
    MEASURES,
    compare,
    mmd,
    pixel_density,
    sliced_wasserstein,
    spectrum,
    tail_error,
    tail_quantile,
    wasserstein,
)
from workflow.interfaces import UserError


def normals(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def even(x):
    return torch.full((1, len(x)), 1 / len(x), dtype=torch.float64)


def value(measure, x, y):
    return float(measure(x, y)(even(x), even(y)))


def test_wasserstein_and_energy_are_scipy_s_in_one_dimension():
    """Also weighted; SciPy's energy distance is the root of the biased one."""
    x, y = normals(300, 1), 1.3 * normals(300, 1, seed=2) + 0.2
    wx, wy = (torch.rand(1, 300, generator=torch.Generator().manual_seed(s)) for s in (3, 4))
    wx, wy = wx.double() / wx.sum(), wy.double() / wy.sum()
    expected = wasserstein_distance(x[:, 0], y[:, 0], wx[0], wy[0])
    assert float(wasserstein(x, y)(wx, wy)) == pytest.approx(expected, rel=1e-6)
    within = sum(torch.cdist(v, v).mean() for v in (x, y))
    unbiased = value(MEASURES["energy"], x, y) + within / 299
    assert float(unbiased) == pytest.approx(energy_distance(x[:, 0], y[:, 0]) ** 2, rel=1e-9)


def test_a_shift_moves_every_sliced_distance_by_its_projection():
    """W1 of a shift by m is |m . e|, mean over directions |m| 2 / pi in the plane."""
    x = normals(500, 2)
    measure = partial(sliced_wasserstein, directions=4000)
    shift = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert value(measure, x, x + shift) == pytest.approx(5 * 2 / math.pi, rel=0.02)


def test_the_mmd_of_equal_laws_is_zero_on_average():
    """Unbiased: the mean over 60 pairs of sets is 0 within 4 standard errors."""
    found = torch.tensor(
        [value(mmd, normals(40, 3, seed=2 * s), normals(40, 3, seed=2 * s + 1)) for s in range(60)]
    )
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(60)


def test_the_spectrum_error_is_the_log_of_an_amplification():
    """Twice the field is four times the power in every shell."""
    x = normals(50, 2, 8, 8)
    assert value(spectrum, 2 * x, x) == pytest.approx(math.log(4), rel=1e-9)


def test_the_spectrum_counts_modes_of_a_wave_in_its_shell():
    """A wave of three cycles amplified alone is seen in one shell of five."""
    x = normals(50, 1, 8)
    modes = torch.fft.rfft(x)
    modes[..., 3] *= 3
    louder = torch.fft.irfft(modes, n=8)
    assert value(spectrum, louder, x) == pytest.approx(math.log(9) / math.sqrt(5), rel=1e-9)


def test_pixel_densities_without_overlap_are_at_distance_one():
    x = normals(50, 1, 6, 6)
    # The outer bins hold 1e-3 of the data.
    assert value(pixel_density, x + 20, x) == pytest.approx(1.0, abs=1e-3)
    assert value(pixel_density, x.flip(0), x) == pytest.approx(0.0, abs=1e-12)


def test_the_density_of_a_wider_normal_has_its_total_variation():
    """TV of N(0, 1) and N(0, 4) is 0.3230; 4 standard errors of 2e5 samples and bins."""
    x, y = 2 * normals(200_000, 1), normals(200_000, 1, seed=2)
    cross = math.sqrt(8 * math.log(2) / 3)
    exact = math.erf(cross / math.sqrt(2)) - math.erf(cross / 2 / math.sqrt(2))
    assert value(pixel_density, x, y) == pytest.approx(exact, abs=0.01)


def test_a_scaled_tail_has_the_log_of_the_scale():
    """ln Q shifts by ln 2 at all levels: MSLE 0.05 (ln 2)^2."""
    x = normals(2000, 2).abs()
    assert value(tail_error, 2 * x, x) == pytest.approx(0.05 * math.log(2) ** 2, rel=1e-9)
    assert value(partial(tail_quantile, level=0.99), 2 * x, x) == pytest.approx(math.log(2))


def test_intervals_cover_the_mean_distance_of_sets_of_that_size():
    """95 % of 100 intervals, less 4 binomial standard errors; also where the laws are equal."""
    for shift in (0.0, 0.5):
        found = [
            compare(
                normals(100, 2, seed=3 * s) + shift,
                normals(200, 2, seed=3 * s + 1),
                {"w": wasserstein, "mmd": mmd},
                resamples=100,
            )
            for s in range(100)
        ]
        for name in ("w", "mmd"):
            mean = sum(one[name].value for one in found) / len(found)
            inside = sum(one[name].low <= mean <= one[name].high for one in found)
            assert inside >= 95 - 4 * math.sqrt(100 * 0.95 * 0.05)


def test_equal_laws_are_rarely_told_from_their_floor_and_others_always():
    measures = {name: MEASURES[name] for name in ("sliced_wasserstein", "energy", "pixel_density")}
    same = [
        compare(normals(128, 2, seed=3 * s), normals(256, 2, seed=3 * s + 1), measures)
        for s in range(30)
    ]
    assert sum(one[name].seen for one in same for name in measures) <= 6
    other = compare(normals(128, 2) + 1.0, normals(256, 2, seed=2), measures)
    assert all(one.seen for one in other.values())


def test_every_measure_comes_with_its_floor_and_size():
    """GEN-2; a field of positive numbers, on which all are defined."""
    found = compare(normals(64, 1, 8, 8).abs(), normals(200, 1, 8, 8, seed=2).abs(), MEASURES)
    assert set(found) == set(MEASURES)
    for one in found.values():
        assert set(one.plain()) == {
            *("value", "low", "high", "floor", "floor_high", "samples", "level")
        }
        assert one.samples == 64 and one.low < one.value < one.high
        assert one.floor < one.floor_high


def test_rows_that_go_together_widen_the_interval():
    """Each sample of the data eight times: a unit of 8 has the interval of an eighth of them."""
    x, few = normals(512, 1), normals(128, 1, seed=2)
    data = few.repeat_interleave(8, 0)
    together = compare(x, data, {"w": wasserstein}, unit=8)["w"]
    apart = compare(x, data, {"w": wasserstein})["w"]
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_the_bootstrap_is_a_function_of_its_seed():
    x, y = normals(50, 1), normals(100, 1, seed=2)
    one, same, other = (compare(x, y, {"w": wasserstein}, seed=s)["w"] for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    ("samples", "data", "told"),
    [
        (normals(20, 2), normals(40, 3), "equal shapes"),
        (normals(20, 2), normals(10, 2), "needs 8 and 16"),
        (normals(20, 2) / 0, normals(40, 2), "20 of 20 samples are not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(samples, data, told):
    with pytest.raises(UserError, match=told) as error:
        compare(samples, data, {"w": wasserstein})
    assert "\n" not in str(error.value)


def test_a_tail_below_zero_and_a_spectrum_without_space_are_refused():
    x = normals(50, 2)
    with pytest.raises(UserError, match="take absolute values"):
        tail_error(x - 10, x)
    with pytest.raises(UserError, match="no space"):
        spectrum(x, x)
