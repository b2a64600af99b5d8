"""The effective number of pairs is what its formula says, of any observable."""

import numpy as np
import pytest
import torch

from workflow.interfaces import Field, Saved
from workflow.responses.channels import Channels
from workflow.responses.observables import build_observables
from workflow.responses.pairs import ENOUGH, PairMoments, enough, few_from, square_norms
from workflow.responses.probes import Statistics


def moments(sizes, rounds):
    """Of pairs with these norms `(round, member)`, in blocks of so many rounds."""
    parts = np.split(sizes, np.cumsum(rounds)[:-1])
    means = [
        np.stack([(p**power).mean(0) for p in parts])[..., None, None, None] for power in (2, 4)
    ]
    return PairMoments.of(*means, np.array(rounds, dtype=float))


def test_pairs_that_answer_alike_all_count():
    found = moments(np.full((7, 3), 1.7), [3, 4])
    assert found.pairs == 21
    assert found.effective() == pytest.approx(21, rel=1e-12)


def test_one_pair_among_many_counts_by_its_square():
    """Of n - 1 pairs of size 1 and one of size a: (n - 1 + a^2)^2 / (n - 1 + a^4)."""
    for a in (0.0, 1.0, 3.0, 30.0, 1e6):
        sizes = np.ones((8, 5))
        sizes[3, 2] = a
        found = moments(sizes, [1, 2, 5]).effective()
        assert found == pytest.approx((39 + a**2) ** 2 / (39 + a**4), rel=1e-12)


def test_heavy_tails_have_the_effective_number_of_their_formula():
    """|R| = exp(2 z): of n pairs n exp(-16) or so count, whatever blocks they came in."""
    sizes = np.exp(2 * np.random.default_rng(0).standard_normal((64, 32)))
    known = (sizes**2).sum() ** 2 / (sizes**4).sum()
    assert 1 <= known < 0.01 * sizes.size
    for rounds in ([64], [1, 20, 43], [8] * 8):
        assert moments(sizes, rounds).effective() == pytest.approx(known, rel=1e-10)


def test_no_answer_is_no_pair():
    """An indicator that no pair crosses."""
    assert np.isnan(moments(np.zeros((4, 2)), [4]).effective()).all()


def test_the_first_lag_with_few_pairs_is_told():
    lag = 0.5 * np.arange(5)
    assert enough(10_000) == ENOUGH and enough(40) == 5
    assert few_from(np.array([900.0, 31, 29, 12, 400]), lag, 900) == 1.0
    assert few_from(np.array([900.0, np.nan, 31, np.nan, 30]), lag, 900) is None
    assert few_from(np.array([40.0, 5.1, 4.9, 40, 40]), lag, 40) == 1.0


@pytest.mark.parametrize("homogeneous", [True, False])
def test_a_norm_is_over_the_numbers_of_an_observable(homogeneous):
    """Places of a map or of a field, shells of a spectrum, one number of a mean."""
    saved = Saved((Field("u", "u"), Field("v", "v")), (4, 6), homogeneous)
    x = torch.randn((5, 2, 4, 6), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    statistics = Statistics.fit(x, homogeneous=homogeneous)
    asked = ["field", "mean", "spectrum"] if homogeneous else ["field", "mean"]
    channels = Channels.of(saved, build_observables(asked, saved, statistics), ())
    maps = channels.maps_a(x) if homogeneous else None
    found = square_norms(channels, channels.observe(x, maps), maps)
    assert found.shape == (5, len(channels.observables))
    for index, one in enumerate(channels.observables):
        known = one.values(x).reshape(len(x), -1).square().sum(1)
        torch.testing.assert_close(found[:, index], known, rtol=1e-12, atol=0)


def test_a_fourth_power_is_not_too_large_for_its_number():
    """A kick of 1e-6 in a field of a thousand: |R|^4 is 1e36 a place."""
    saved = Saved((Field("u", "u"),), (32, 32), True)
    channels = Channels.of(saved, build_observables(["field"], saved, None), ())
    maps = torch.full((1, 1, 32, 32), 1e9)
    square = square_norms(channels, maps.flatten(2).mean(2), maps)
    assert float((square**2).item()) == pytest.approx(1024**2 * 1e36, rel=1e-6)
