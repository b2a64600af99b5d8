"""What every engine promises: the steps of the system itself, with the same noise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from workflow.dynamics import build_system, engines
from workflow.dynamics.engines import check_engine, fastest_engine, stepper
from workflow.dynamics.lanes.equations import LaneStepper, refusal
from workflow.dynamics.lanes.library import BUILDS, Library, built, library
from workflow.dynamics.noise import FORCING, INITIAL, NoiseStream, normals
from workflow.interfaces import UserError

torch.set_num_threads(1)

NO_KERNELS = "no C++ compiler made the kernels; reinstall with one"
needs_kernels = pytest.mark.skipif(library() is None, reason=NO_KERNELS)

SPECIFICATIONS = [
    {"kind": kind, "grid": grid, **more}
    for kind, grid, more in [
        ("ornstein_uhlenbeck", 16, {}),
        ("ornstein_uhlenbeck", 12, {"scheme": "paper", "dt": 1 / 32}),
        ("ornstein_uhlenbeck", 40, {"dim": 1}),
        ("allen_cahn", 16, {}),
        ("allen_cahn", 20, {"scheme": "paper"}),
        ("allen_cahn", 32, {"dim": 1}),
        ("allen_cahn", 24, {"dim": 1, "scheme": "paper"}),
        ("navier_stokes", 32, {}),
        ("navier_stokes", 24, {"scheme": "dealiased"}),
        ("navier_stokes", 32, {"scheme": "dealiased"}),
    ]
]
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-12}
"""Of the largest value, after hundreds of steps."""

every_kernel = pytest.mark.parametrize(
    "specification", SPECIFICATIONS, ids=lambda s: "-".join(map(str, s.values()))
)
both_precisions = pytest.mark.parametrize("dtype", list(ROUNDING), ids=["float32", "float64"])


def runs_here():
    """Builds that are there and that this processor runs."""
    widest = library()
    names = BUILDS[BUILDS.index(widest.name) :] if widest else ()
    return [Library(name, built(name)) for name in names if built(name)]


def start(system, members, dtype):
    shape = system.initial_shape
    return system.initial(NoiseStream(3, members, stream=INITIAL, shape=shape, dtype=dtype).at(0))


def advanced(engine, system, members, state, *, cuts=(0, 200)):
    """The state after the steps of `cuts`, handed to a new stepper at every cut."""
    for first, last in zip(cuts[:-1], cuts[1:], strict=True):
        way = stepper(engine, system, state, seed=3, members=members, stream=FORCING)
        way.advance(first, last - first)
        state = way.state()
    return state


@needs_kernels
@both_precisions
@every_kernel
def test_engines_agree_to_rounding_over_hundreds_of_steps(specification, dtype, monkeypatch):
    """Every build of the kernels, for members that do not fill their vectors."""
    system, members = build_system(specification), [3, 0, 8, 10**6, 9]
    begun = start(system, members, dtype)
    reference = system.observe(advanced("torch", system, members, begun))
    for build in runs_here():
        monkeypatch.setattr(engines, "library", lambda build=build: build)
        way = stepper("lanes", system, begun, seed=3, members=members, stream=FORCING)
        assert isinstance(way, LaneStepper)
        way.advance(0, 200)
        scale = reference.abs().max().item()
        error = (way.observe() - reference).abs().max().item()
        assert error < ROUNDING[dtype] * scale, build.name
        error = (system.observe(way.state()) - way.observe()).abs().max().item()
        assert error < 0.1 * ROUNDING[dtype] * scale, build.name


@needs_kernels
@both_precisions
@every_kernel
def test_lanes_give_the_same_bits_for_any_batch_and_segment(specification, dtype):
    """A member's numbers are its own: alone, in any company, stopped and handed over anywhere."""
    system = build_system(specification)
    members = list(range(19))
    begun = start(system, members, dtype)
    together = advanced("lanes", system, members, begun, cuts=(0, 40))
    for group in ([4], [18, 2, 7], members[::-1]):
        own = {name: value[group] for name, value in begun.items()}
        apart = advanced("lanes", system, group, own, cuts=(0, 1, 13, 40))
        for name, value in apart.items():
            assert torch.equal(value, together[name][group]), name


@pytest.mark.parametrize("engine", ["torch", pytest.param("lanes", marks=needs_kernels)])
@both_precisions
def test_any_number_of_threads_gives_the_same_bits(engine, dtype):
    """Groups stepped at once by two threads, against one group after the other.

    torch has one thread inside each, which every task sees to: its sums of phases differ in their
    last bits with more.
    """
    system = build_system({"kind": "navier_stokes", "grid": 64})
    groups = [range(8), range(8, 16)]
    begun = [start(system, group, dtype) for group in groups]

    def go(group, state):
        return advanced(engine, system, group, state, cuts=(0, 8))

    alone = list(map(go, groups, begun))
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(go, groups, begun))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@needs_kernels
@every_kernel
def test_a_state_goes_through_the_lanes_unchanged(specification):
    """Packing is a permutation: restart states of the two engines are the same."""
    system = build_system(specification)
    state = start(system, range(5), torch.float32)
    way = stepper("lanes", system, state, seed=3, members=range(5), stream=FORCING)
    back = way.state()
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(back[name], value) and back[name].dtype == value.dtype


@needs_kernels
@pytest.mark.parametrize("kind", ["allen_cahn", "navier_stokes"])
def test_a_member_that_blows_up_is_seen_and_harms_nobody(kind):
    """Its numbers stop being finite; its neighbours in the vector keep every bit."""
    system, members = build_system({"kind": kind, "grid": 16}), range(6)
    state = start(system, members, torch.float32)
    kick = torch.zeros(6, 1, 16, 16)
    kick[2, 0, 5, 5] = 1e12
    finite, observed = [], []
    for displacement in (torch.zeros_like(kick), kick):
        begun = system.displace(state, displacement)
        way = stepper("lanes", system, begun, seed=3, members=members, stream=FORCING)
        way.advance(0, 20)
        observed.append(way.observe())
        finite.append(torch.isfinite(observed[-1]).flatten(1).all(1).tolist())
    assert finite == [[True] * 6, [True, True, False, True, True, True]]
    others = [0, 1, 3, 4, 5]
    assert torch.equal(observed[0][others], observed[1][others])


@needs_kernels
@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_transforms_are_those_of_numpy(real, sign):
    """All lengths 2^a 3^b 5^c up to 512, in place and not, one signal per lane."""
    dtype = np.dtype(real)
    lengths = [n for n in range(2, 513) if 2**9 * 3**6 * 5**4 % n == 0]
    assert len(lengths) == 67
    for build in runs_here():
        for n in lengths:
            x, y = (build.empty((n, 2, build.lanes(dtype)), dtype) for _ in range(2))
            x[:] = np.random.default_rng(n).standard_normal(x.shape)
            exact = x[:, 0].astype(float) + 1j * x[:, 1]
            exact = np.fft.fft(exact, axis=0) if sign < 0 else n * np.fft.ifft(exact, axis=0)
            build.call("transform", dtype, n, sign, x, y, 1)
            build.call("transform", dtype, n, sign, x, x, 1)
            error = np.abs(y[:, 0] + 1j * y[:, 1] - exact).max()
            assert error < 8 * np.finfo(dtype).eps * np.abs(exact).max(), (build.name, n)
            np.testing.assert_array_equal(x, y)


@needs_kernels
@both_precisions
def test_every_build_draws_the_normals_of_their_definition(dtype):
    """Also for the largest names that there are."""
    real = np.dtype(str(dtype).removeprefix("torch."))
    seed, members = 2**63 - 1, [2**32 - 1, 0, 77]
    for build in runs_here():
        lanes = build.lanes(real)
        blocks = build.pack_members(members, real)
        out = build.empty((len(blocks), 3, 500, lanes), real)
        for block, numbers in enumerate(blocks):
            build.call("normals", real, seed, 2**32 - 1, numbers, 2**32 - 4, 3, 125, out[block])
        ours = np.moveaxis(out, -1, 1).reshape(-1, 3, 500)[:3]
        steps = range(2**32 - 4, 2**32 - 1)
        name = {"steps": steps, "stream": 2**32 - 1, "count": 500, "dtype": dtype}
        exact = normals(seed, members, **name).swapaxes(0, 1)
        np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-6 if real.itemsize == 4 else 1e-14)


def test_a_system_without_a_kernel_is_stepped_by_torch_and_says_so():
    """`auto` finds the engine; a wish that cannot be met is refused with the reason."""
    odd = build_system({"kind": "allen_cahn", "grid": 28})
    for system in (build_system({"kind": "scalar"}), odd):
        assert fastest_engine(system) == "torch"
        with pytest.raises(UserError, match="use ensemble.engine=torch") as caught:
            check_engine("lanes", system)
        assert "\n" not in str(caught.value)
    assert "factors 2, 3 and 5" in refusal(odd)


def test_without_kernels_torch_steps_everything(monkeypatch):
    """No compiler is no error, unless the run was begun with the kernels."""
    monkeypatch.setattr(engines, "library", lambda: None)
    system = build_system({"kind": "allen_cahn", "grid": 16})
    assert fastest_engine(system) == "torch"
    check_engine("torch", system)
    with pytest.raises(UserError, match="install a C\\+\\+ compiler"):
        check_engine("lanes", system)
