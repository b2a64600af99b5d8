"""Observables and perturbations: what they compute, and what they refuse."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

from workflow.dynamics import build_system
from workflow.interfaces import Field, Saved, UserError
from workflow.responses.observables import build_observables
from workflow.responses.perturbations import build_perturbations
from workflow.responses.probes import Statistics

FIELD = Saved((Field("u", "field"),), (6, 8), True)
PLACES = Saved((Field("u", "field"),), (6, 8), False)
TWO = Saved((Field("u", "first", "m"), Field("v", "second", "K")), (8,), True)


def snapshots(saved, count=50):
    generator = torch.Generator().manual_seed(1)
    shape = (count, len(saved.fields), *saved.shape)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5 + 0.7


def observed(spec, saved=FIELD):
    x = snapshots(saved)
    statistics = Statistics.fit(x, homogeneous=saved.homogeneous)
    (one,) = build_observables([spec], saved, statistics)
    return x, one, one.values(x)


def test_moments_are_about_the_unperturbed_mean():
    x, one, values = observed("moment_3")
    assert torch.allclose(values, (x[:, 0] - x.mean()) ** 3)
    assert (one.name, one.of_place) == ("moment_3", True)


def test_moments_of_an_inhomogeneous_field_are_about_the_mean_of_each_place():
    x, _, values = observed("moment_2", PLACES)
    assert torch.allclose(values, (x[:, 0] - x[:, 0].mean(0)) ** 2)


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_a_central_moment_does_not_feel_a_shift_of_all_data(order):
    """To first order: d<A>/dshift = n m_{n-1} - n m_{n-1} = 0, where the plain moment moves."""
    x, _, _ = observed("field")
    statistics = Statistics.fit(x, homogeneous=True)
    (central,) = build_observables([f"central_moment_{order}"], FIELD, statistics)
    (plain,) = build_observables([f"moment_{order}"], FIELD, statistics)
    h = 1e-4
    slope = (central.values(x + h).mean() - central.values(x - h).mean()) / (2 * h)
    moved = (plain.values(x + h).mean() - plain.values(x - h).mean()) / (2 * h)
    expected = order * float(statistics.moments[order - 1, 0])
    assert abs(slope) < 1e-6
    assert float(moved) == pytest.approx(expected, abs=1e-6)


def test_the_spectrum_sums_to_the_mean_square():
    """Parseval, shell by shell."""
    x, one, values = observed("spectrum")
    assert torch.allclose(values.sum(1), x[:, 0].square().mean((1, 2)))
    assert one.coordinate[0] == 0.0 and one.axis == "shell"
    wave = torch.cos(2 * math.pi * torch.arange(8) / 8 * 2).expand(1, 1, 6, 8).double()
    assert torch.allclose(one.values(wave)[0, 2], torch.tensor(0.5, dtype=torch.float64))


def test_the_histogram_is_a_density():
    x, one, values = observed({"kind": "histogram", "bins": 20})
    width = one.coordinate[1] - one.coordinate[0]
    assert torch.allclose(values.sum(1) * width, torch.ones(len(x), dtype=torch.float64))
    counts, _ = np.histogram(x.numpy(), bins=20)
    assert np.allclose(values.sum(0) * width * 48, counts)


def test_an_exceedance_counts_what_is_above():
    x, one, values = observed({"kind": "exceedance", "above": 1.0})
    assert torch.equal(values, (x[:, 0] > 1.0).double())
    assert one.name == "exceedance(1)"


def test_probes_of_several_fields_carry_their_names():
    names = [one.name for one in build_observables(["field", "mean"], TWO, None)]
    assert names == ["field:u", "field:v", "mean:u", "mean:v"]
    kicks = build_perturbations(["pixel"], TWO, system=None, where=None)
    assert [one.name for one in kicks] == ["pixel:u", "pixel:v"]
    only = build_observables([{"kind": "moment_2", "field": "v"}], TWO, None)
    assert [(one.name, one.units) for one in only] == [("moment_2:v", "(K)2")]


def test_a_function_of_the_dataset_is_an_observable(tmp_path, monkeypatch):
    """It sees names and dims, and may return a map, a number, or a row of numbers."""
    (tmp_path / "mine.py").write_text(
        "def square(ds): return ds.u**2\n"
        "def rough(ds): return abs(ds.u.diff('x')).mean(('y', 'x'))\n"
        "def rows(ds): return ds.u.mean('x')\n"
        "def lost(ds): return ds.u.mean()\n"
        "def typo(ds): return ds.v**2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    x, square, values = observed("mine:square")
    assert square.of_place and torch.allclose(values, x[:, 0] ** 2)
    _, rough, values = observed("mine:rough")
    assert not rough.of_place and values.shape == (50,)
    _, rows, values = observed({"kind": "mine:rows", "name": "zonal"})
    assert (rows.name, rows.axis, values.shape) == ("zonal", "y", (50, 6))
    with pytest.raises(UserError, match="must return a DataArray with dims member and time"):
        observed("mine:lost")
    with pytest.raises(UserError, match=r"mine:typo failed with AttributeError: .*'v'") as told:
        observed("mine:typo")
    assert len(str(told.value).splitlines()) == 1


def test_patterns_are_what_they_say():
    pixel, bump, uniform, mode = build_perturbations(
        ["pixel", {"kind": "bump", "width": 1.0}, "uniform", {"kind": "mode", "k": [1, 0]}],
        FIELD,
        system=None,
        where=None,
    )
    assert pixel.pattern.sum() == 1 and pixel.pattern[0, 0, 0] == 1
    assert bump.pattern[0, 0, 0] == 1
    assert float(bump.pattern[0, 5, 7]) == pytest.approx(math.exp(-1.0))
    assert uniform.pattern.sum() == 48
    assert torch.allclose(mode.pattern[0, 3], torch.full((8,), -1.0, dtype=torch.float64))
    (there,) = build_perturbations(
        [{"kind": "pixel", "at": [2, -1]}], PLACES, system=None, where=None
    )
    assert there.name == "pixel[2,7]" and there.pattern[0, 2, 7] == 1


def test_an_array_of_the_users_is_a_pattern(tmp_path):
    values = np.arange(48.0).reshape(6, 8)
    np.save(tmp_path / "phi.npy", values)
    xr.Dataset({"phi": (("y", "x"), values)}).to_netcdf(tmp_path / "phi.nc")
    for name in ("phi.npy", "phi.nc"):
        (one,) = build_perturbations(
            [{"kind": "pattern", "file": name}], FIELD, system=None, where=tmp_path
        )
        assert np.array_equal(one.pattern[0], values)
    np.save(tmp_path / "small.npy", np.ones(3))
    with pytest.raises(UserError, match=r"shape \(3,\); needs finite numbers of shape \(6, 8\)"):
        build_perturbations(
            [{"kind": "pattern", "file": "small.npy"}], FIELD, system=None, where=tmp_path
        )


REFUSED = {
    "unknown observable": (["feild"], [], "did you mean 'field'"),
    "unknown key": ([{"kind": "mean", "of": 1}], [], r"unknown key 'response.observables\[0\].of'"),
    "order of a moment": (["moment_9"], [], "orders 2 to 5"),
    "no threshold": (["exceedance"], [], "above=None: needs a number"),
    "twice": (["field", "field"], [], "'field' is there twice"),
    "no kind": ([{"above": 1}], [], "has no kind"),
    "no module": (["nowhere:f"], [], "nowhere.*PYTHONPATH"),
    "pixel of a homogeneous field": (["pixel"], [], "all pixels of a homogeneous field are one"),
    "unknown perturbation": ([], ["pixle"], "did you mean 'pixel'"),
    "place of a homogeneous field": ([], [{"kind": "pixel", "at": [1, 1]}], "remove 'at'"),
    "width": ([], [{"kind": "bump", "width": 0}], "needs a positive number of grid steps"),
    "wavenumbers": ([], [{"kind": "mode", "k": [1]}], "needs 2 whole wavenumbers"),
    "no file": ([], [{"kind": "pattern", "file": "no.npy"}], "does not exist"),
    "no parameter": ([], ["parameter"], "say which"),
    "parameter of data": ([], [{"kind": "parameter", "parameter": "a"}], "no equation"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_wrong_probe_is_told_in_one_line(mistake, tmp_path):
    observables, perturbations, words = REFUSED[mistake]
    with pytest.raises(UserError, match=words) as told:
        build_observables(observables, FIELD, None)
        build_perturbations(perturbations, FIELD, system=None, where=tmp_path)
    assert len(str(told.value).splitlines()) == 1


def test_a_place_is_needed_where_places_differ(tmp_path):
    with pytest.raises(UserError, match=r"say which one: \{kind: pixel, at: \[y, x\]\}"):
        build_perturbations(["pixel"], PLACES, system=None, where=tmp_path)
    with pytest.raises(UserError, match=r"at=\[9, 0\]: needs 2 grid indices within \(6, 8\)"):
        build_perturbations([{"kind": "pixel", "at": [9, 0]}], PLACES, system=None, where=tmp_path)


def test_a_parameter_that_the_equation_lacks_is_told_with_the_nearest(tmp_path):
    system = build_system({"kind": "ornstein_uhlenbeck", "grid": 8})
    with pytest.raises(UserError, match="did you mean 'relaxation'"):
        build_perturbations(
            [{"kind": "parameter", "parameter": "relaxatoin"}],
            Saved(tuple(system.fields), system.shape, True),
            system=system,
            where=tmp_path,
        )


@pytest.mark.parametrize("name", ["field:u", "field:v"])
def test_nothing_else_is_called_as_a_field_is(name):
    """Fields are found by name: the response of the field would be given as that of the other."""
    for kind in ("mean", "field"):
        field = "v" if name == "field:u" else "u"
        with pytest.raises(UserError, match="is the name of a field"):
            build_observables([{"kind": kind, "field": field, "name": name}], TWO, None)


def test_rows_of_unlike_labels_need_a_field_beside_them():
    """Of several histograms none can be the root of a tree; spectra share their shells."""
    with pytest.raises(UserError, match="labels of their own along 'bin'.*name 'field' too"):
        build_observables(["histogram"], TWO, None)
    assert len(build_observables(["field", "histogram"], TWO, None)) == 4
    assert len(build_observables(["spectrum"], TWO, None)) == 2


def test_two_observables_never_share_a_group():
    """The later would replace the earlier one in response.zarr."""
    specs = ["mean", {"kind": "spectrum", "field": "u", "name": "mean_u"}]
    with pytest.raises(UserError, match="'mean:u' and 'mean_u' would be one group"):
        build_observables(specs, TWO, None)
