"""Forcings from files: any format is read, what is none is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from workflow.interfaces import UserError
from workflow.responses.forcing import read_forcing


def series(values, *, step, first=0.0):
    values = np.asarray(values, dtype=float)
    return xr.DataArray(
        values, dims="time", coords={"time": first + step * np.arange(len(values))}, name="heating"
    )


@pytest.mark.parametrize("kind", ["nc", "zarr", "csv"])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_forcing_file_is_read_whatever_its_format(kind, tmp_path):
    dates = np.datetime64("2001-01-31", "ns") + np.arange(5) * np.timedelta64(1, "D")
    forcing = series([0.5, 1.0, -2.0, 1e-3, 7.0], step=1.0).assign_coords(time=dates)
    path = tmp_path / f"heating.{kind}"
    if kind == "csv":
        lines = [f"{str(t)[:10]}, {v}" for t, v in zip(dates, forcing.values, strict=True)]
        path.write_text("\n".join(["time,heating", *lines, ""]))
    else:
        dataset = forcing.to_dataset().assign(area=3.0)
        dataset.to_netcdf(path, engine="scipy") if kind == "nc" else dataset.to_zarr(path)
    again = read_forcing(path)
    assert again.name == "heating" and again.dims == ("time",)
    np.testing.assert_array_equal(again, forcing)
    assert (again.time.values == dates).all()


def csv_files():
    return {
        "starts with ''; needs the header": "",
        "starts with '0,1'; needs the header": "0,1\n1,2\n",
        "has the columns .*needs two": "time,a,b\n0,1,2\n1,2,3\n",
        "row 3 has 1 columns": "time,a\n0,1\n1\n",
        "column 'a' needs numbers": "time,a\n0,x\n1,2\n",
        "column 'time' needs numbers or ISO dates": "time,a\nnever,1\n1,2\n",
        "1 values that are NaN": "time,a\n0,\n1,2\n",
        "times: 1 given": "time,a\n0,1\n",
        "times are duplicated": "time,a\n0,1\n0,2\n1,2\n",
    }


@pytest.mark.parametrize("message", csv_files())
def test_a_table_that_is_no_forcing_is_refused_in_one_line(message, tmp_path):
    (tmp_path / "f.csv").write_text(csv_files()[message])
    with pytest.raises(UserError, match=message) as caught:
        read_forcing(tmp_path / "f.csv")
    assert "f.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_forcing_is_refused_in_one_line(tmp_path):
    good = series(np.ones(4), step=1.0)
    good.to_dataset().assign(wind=good).to_netcdf(tmp_path / "two.nc", engine="scipy")
    good.rename(time="t").to_netcdf(tmp_path / "untimed.nc", engine="scipy")
    good.where(good.time > 0).to_netcdf(tmp_path / "nan.nc", engine="scipy")
    (tmp_path / "text.nc").write_text("nothing of the kind")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder").mkdir()
    expected = {
        "none.nc": "does not exist",
        "two.nc": r"has the variables \['heating', 'wind'\]; needs one",
        "untimed.nc": "has no variable over time, only",
        "nan.nc": "1 values that are NaN",
        "text.nc": "cannot be read",
        "binary.csv": "cannot be read",
        "folder": "cannot be read",
    }
    for name, message in expected.items():
        with pytest.raises(UserError, match=message) as caught:
            read_forcing(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
