"""`ds.gfdt.response` of Dask data: nothing is read before the numbers are wanted, then once."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import dask
import matplotlib
import numpy as np
import pytest
import xarray as xr

import workflow  # noqa: F401  registers the accessor

matplotlib.use("Agg")
SETTINGS = {"max_lag": 3, "homogeneous": True, "samples": 50}
CHUNKS = {"member": 3, "time": 70}
OF_SEVERAL_KINDS = ["field", "moment_2", "spectrum", {"kind": "histogram", "range": [-3, 3]}]


@pytest.fixture(scope="module")
def plane():
    """A field that forgets by half each step, with units."""
    rng = np.random.default_rng(5)
    x = np.empty((8, 300, 4, 6))
    x[:, 0] = rng.standard_normal((8, 4, 6))
    for t in range(1, 300):
        x[:, t] = 0.5 * x[:, t - 1] + rng.standard_normal((8, 4, 6))
    data = xr.Dataset({"u": (("member", "time", "y", "x"), x)})
    data["u"].attrs = {"units": "K", "long_name": "temperature"}
    return data.assign_coords(time=("time", 0.5 * np.arange(300), {"units": "day"}))


class Reads:
    """Lazy data that count how often each of their blocks is read, which `refused` forbids."""

    def __init__(self, data):
        self.count, self.refused, self._lock = Counter(), False, threading.Lock()
        chunked = data.chunk(CHUNKS)
        u = chunked["u"].data
        counted = u.map_blocks(self._read, dtype=u.dtype, meta=np.empty((0,) * 4, u.dtype))
        self.data = chunked.assign(u=chunked["u"].copy(data=counted))

    def _read(self, block, block_info=None):
        assert not self.refused, "read too early"
        with self._lock:
            self.count[tuple(block_info[0]["chunk-location"])] += 1
        return block


def leaves(answer):
    """Datasets of an answer by group."""
    if isinstance(answer, xr.Dataset):
        return {"": answer}
    return {node.path: node.to_dataset(inherit=False) for node in answer.subtree}


def assert_lazy_twin(lazy, eager):
    """Everything but the numbers is known, and no number is."""
    assert type(lazy) is type(eager)
    ours, theirs = leaves(lazy), leaves(eager)
    assert list(ours) == list(theirs)
    for group, one in ours.items():
        assert one.attrs == theirs[group].attrs
        assert list(one.data_vars) == list(theirs[group].data_vars)
        assert set(one.coords) == set(theirs[group].coords)
        for name, v in one.variables.items():
            other = theirs[group][name].variable
            assert (v.dims, v.shape, v.dtype, v.attrs) == (
                *(other.dims, other.shape, other.dtype, other.attrs),
            )
            if name in one.coords:
                np.testing.assert_array_equal(v.values, other.values)
            else:
                assert v.chunks is not None


@pytest.mark.parametrize("observables", [["field"], OF_SEVERAL_KINDS], ids=["one", "several"])
@pytest.mark.parametrize(
    ("homogeneous", "kind"), [(True, "float64"), (False, "float64"), (True, "float32")]
)
def test_an_answer_is_lazy_and_then_the_same_to_the_bit(plane, observables, homogeneous, kind):
    """Each block is read for the fit of the score and for the sums, however many variables."""
    plane = plane.astype(kind)
    settings = SETTINGS | {"observables": observables, "homogeneous": homogeneous}
    reads = Reads(plane)
    reads.refused = True
    lazy = reads.data.gfdt.response(**settings)
    eager = plane.gfdt.response(**settings)
    assert_lazy_twin(lazy, eager)
    reads.refused = False
    found = lazy.compute()
    assert len(reads.count) == 15 and set(reads.count.values()) == {2}
    for group, one in leaves(eager).items():
        xr.testing.assert_identical(leaves(found)[group], one)


@pytest.mark.parametrize("chunks", [{"member": 5}, {"time": 33, "y": 2}, {"member": 1, "x": 1}])
def test_the_bits_do_not_depend_on_chunks(plane, chunks):
    eager = plane.gfdt.response(**SETTINGS)
    xr.testing.assert_identical(plane.chunk(chunks).gfdt.response(**SETTINGS).compute(), eager)


def test_all_variables_come_from_one_task(plane):
    """Which holds the data as they are: their chunks are not its inputs."""
    lazy = plane.chunk(time=10).gfdt.response(**SETTINGS)
    graph = dict(lazy.__dask_graph__())
    assert len(graph) == 1 + 2 * len(lazy.data_vars)
    inputs = [one for one in graph.values() if not getattr(one, "dependencies", ())]
    assert len(inputs) == 1


def test_the_bins_of_a_histogram_without_a_range_take_one_pass(plane):
    """They are labels, which depend on the data; the numbers are lazy all the same."""
    reads = Reads(plane)
    settings = SETTINGS | {"observables": ["field", "histogram"]}
    lazy = reads.data.gfdt.response(**settings)
    assert set(reads.count.values()) == {1}
    eager = plane.gfdt.response(**settings)
    assert_lazy_twin(lazy, eager)
    for group, one in leaves(eager).items():
        xr.testing.assert_identical(leaves(lazy.compute())[group], one)


@pytest.mark.parametrize("store", ["netcdf", "zarr"])
@pytest.mark.parametrize("observables", [["field"], OF_SEVERAL_KINDS], ids=["one", "several"])
def test_writing_an_answer_computes_it_once(plane, observables, store, tmp_path):
    reads = Reads(plane)
    settings = SETTINGS | {"observables": observables}
    lazy = reads.data.gfdt.response(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # strings in Zarr v3
        if store == "zarr":
            lazy.to_zarr(tmp_path / "answer")
        else:
            lazy.to_netcdf(tmp_path / "answer")
    if isinstance(lazy, xr.Dataset) or store == "zarr":
        assert set(reads.count.values()) == {2}
    back = xr.open_datatree(tmp_path / "answer", engine="zarr" if store == "zarr" else "netcdf4")
    for group, one in leaves(plane.gfdt.response(**settings)).items():
        kept = back[group or "/"].to_dataset(inherit=False)
        xr.testing.assert_equal(kept.astype("float64"), one.astype("float64"))
        assert kept.attrs == one.attrs and kept.response.attrs == one.response.attrs


def test_a_lazy_answer_is_drawn_like_another(plane):
    reads = Reads(plane)
    lazy, eager = (d.gfdt.response(**SETTINGS) for d in (reads.data, plane))
    curves = [one.gfdt.plot.response(dx=1).get_lines()[0].get_ydata() for one in (lazy, eager)]
    np.testing.assert_array_equal(*curves)
    maps = [one.gfdt.plot.map(lag=1).collections[0].get_array() for one in (lazy, eager)]
    np.testing.assert_array_equal(*maps)
    matplotlib.pyplot.close("all")
    assert set(reads.count.values()) == {2}


def test_variables_looked_at_one_by_one_read_the_data_once(plane):
    """Also from other threads; in another process the data are read again, and no more is sent."""
    reads = Reads(plane)
    lazy = reads.data.gfdt.response(**SETTINGS)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda v: v.compute(), lazy.data_vars.values()))
    assert set(reads.count.values()) == {2}
    sent = len(cloudpickle.dumps(plane.chunk(CHUNKS).gfdt.response(**SETTINGS)))
    lazy = plane.chunk(CHUNKS).gfdt.response(**SETTINGS)
    lazy.compute()
    assert len(cloudpickle.dumps(lazy)) < 1.1 * sent


def test_scores_given_lazily_make_a_lazy_answer(plane):
    score = -plane.rename(u="score_u")
    lazy = plane.gfdt.response(score=score.chunk(CHUNKS), **SETTINGS)
    assert lazy.response.chunks is not None
    eager = plane.gfdt.response(score=score, **SETTINGS)
    xr.testing.assert_identical(lazy.compute(), eager)


def test_a_cluster_of_one_thread_answers_too(plane):
    """The task waits for tasks of its own, also for those of data kept by the workers."""
    import distributed

    eager = plane.gfdt.response(**SETTINGS)
    with (
        dask.config.set({"distributed.worker.daemon": False}),
        distributed.Client(
            processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0"
        ),
    ):
        kept = plane.chunk(CHUNKS).persist()
        xr.testing.assert_identical(kept.gfdt.response(**SETTINGS).compute(), eager)
