"""What every system promises, whichever equation it holds; and how one is named."""

from __future__ import annotations

import pytest
import torch

from workflow.dynamics import SYSTEMS, build_system, parameters_of
from workflow.dynamics.noise import FORCING, INITIAL, NoiseStream
from workflow.dynamics.spectral import SpectralSPDE
from workflow.interfaces import HasDrift, HasExactResponse, HasExactScore, System, UserError

torch.set_num_threads(1)

ON_A_GRID = [kind for kind, system in SYSTEMS.items() if issubclass(system, SpectralSPDE)]
SPECIFICATIONS = [
    {"kind": kind, "grid": 16} if kind in ON_A_GRID else {"kind": kind} for kind in SYSTEMS
] + [
    {"kind": "ornstein_uhlenbeck", "grid": 16, "scheme": "paper", "dt": 1 / 32},
    {"kind": "ornstein_uhlenbeck", "grid": 16, "dim": 1},
    {"kind": "allen_cahn", "grid": 16, "scheme": "paper"},
    {"kind": "allen_cahn", "grid": 16, "dim": 1},
    {"kind": "scalar", "forcing": 0.0, "linear": 1.0, "quadratic": 0.0, "cubic": 1.0},
    {"kind": "linear", "matrix": ((0.5,),), "noise": ((1.0,),)},
    {"kind": "scalar", "noise": {"jumps": {"rate": 2.0, "scale": 0.5}}},
    {"kind": "allen_cahn", "grid": 16, "noise": {"jumps": {"rate": 9.0, "scale": 0.5}}},
    {"kind": "ornstein_uhlenbeck", "grid": 16, "noise": {"jumps": {"rate": 9.0, "scale": 0.5}}},
]
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}

every_system = pytest.mark.parametrize(
    "specification", SPECIFICATIONS, ids=lambda s: "-".join(map(str, s.values()))
)
both_precisions = pytest.mark.parametrize("dtype", list(ROUNDING), ids=["float32", "float64"])


def start(system, members, dtype, *, seed=11):
    shape = system.initial_shape
    return system.initial(
        NoiseStream(seed, members, stream=INITIAL, shape=shape, dtype=dtype).at(0)
    )


def advance(system, state, members, dtype, *, first, last, seed=11):
    noise = NoiseStream(seed, members, stream=FORCING, shape=system.noise_shape, dtype=dtype)
    for step in range(first, last):
        state = system.step(state, noise.at(step))
    return state


@both_precisions
@every_system
def test_every_system_has_the_promised_shapes(specification, dtype):
    """Stores are laid out from `fields` and `shape` before the first step is taken."""
    system = build_system(specification)
    assert isinstance(system, System)
    assert len(system.fields) >= 1 and system.dt > 0
    state = start(system, range(3), dtype)
    stepped = advance(system, state, range(3), dtype, first=0, last=2)
    for at in (state, stepped):
        assert system.observe(at).shape == (3, len(system.fields), *system.shape)
        assert system.observe(at).dtype == dtype
        assert all(value.shape[0] == 3 for value in at.values())
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {
        k: (v.shape, v.dtype) for k, v in stepped.items()
    }


@both_precisions
@every_system
def test_what_a_system_knows_of_itself_has_the_promised_shapes(specification, dtype):
    """Stages ask for the optional protocols and hand the answers on without looking."""
    system = build_system(specification)
    x = system.observe(start(system, range(3), dtype))
    answers = []
    if isinstance(system, HasExactScore):
        answers.append((system.exact_score(x), x.shape))
    if isinstance(system, HasDrift):
        answers += [(system.drift(x), x.shape), (system.noise_covariance(x, x), x.shape)]
    if isinstance(system, HasExactResponse):
        count = len(system.fields)
        pair = (count, count) if count > 1 else ()
        response = system.exact_response(torch.tensor([0.0, 0.5], dtype=dtype))
        answers.append((response, (2, *pair, *system.shape)))
    for answer, shape in answers:
        assert answer.shape == shape and answer.dtype == dtype
        assert torch.isfinite(answer).all()


@both_precisions
@every_system
def test_steps_stay_finite_and_move(specification, dtype):
    """Two hundred default steps: the defaults are inside the stability limit of the scheme."""
    system = build_system(specification)
    state = start(system, range(2), dtype)
    before = system.observe(state)
    after = system.observe(advance(system, state, range(2), dtype, first=0, last=200))
    assert torch.isfinite(after).all()
    assert (after != before).any()


@both_precisions
@every_system
def test_displacement_moves_the_saved_fields_and_nothing_else(specification, dtype):
    """A kick is a known change of the saved fields; hidden variables are cloned for paired runs."""
    system = build_system(specification)
    state = advance(system, start(system, range(3), dtype), range(3), dtype, first=0, last=5)
    kept = {name: value.clone() for name, value in state.items()}
    x = system.observe(state)
    kick = torch.randn(x.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    moved = system.displace(state, kick)
    tolerance = ROUNDING[dtype]
    torch.testing.assert_close(system.observe(moved) - x, kick, rtol=0, atol=10 * tolerance)
    back = system.displace(moved, -kick)
    for name, value in kept.items():
        assert torch.equal(state[name], value)
        scale = value.abs().max().item()
        torch.testing.assert_close(back[name], value, rtol=0, atol=tolerance * scale)


def test_hidden_phases_do_not_feel_a_displacement():
    """The phases of the forcing are state, but no saved field."""
    system = build_system({"kind": "navier_stokes", "grid": 16})
    state = start(system, range(2), torch.float64)
    moved = system.displace(state, torch.ones_like(system.observe(state)))
    assert torch.equal(moved["phases"], state["phases"])


@both_precisions
@every_system
def test_members_do_not_feel_their_companions(specification, dtype):
    """Grouping is a matter of speed; only rounding may tell how members were batched."""
    system = build_system(specification)
    together = advance(system, start(system, range(4), dtype), range(4), dtype, first=0, last=5)
    for member in range(4):
        group = [member]
        alone = advance(system, start(system, group, dtype), group, dtype, first=0, last=5)
        ours, theirs = system.observe(alone)[0], system.observe(together)[member]
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUNDING[dtype] * scale)


@both_precisions
@every_system
def test_stepping_in_segments_is_stepping_at_once_bitwise(specification, dtype):
    """A restart rebuilds system and noise and hands over the state alone: nothing else counts."""
    members = range(5, 8)
    system = build_system(specification)
    at_once = advance(system, start(system, members, dtype), members, dtype, first=0, last=40)
    state, bounds = start(system, members, dtype), [0, 7, 32, 40]
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        saved = {name: torch.from_numpy(value.numpy().copy()) for name, value in state.items()}
        again = build_system(specification)
        state = advance(again, saved, members, dtype, first=first, last=last)
    assert all(torch.equal(state[name], value) for name, value in at_once.items())


@every_system
def test_resolved_parameters_build_the_same_system(specification):
    """The resolved experiment writes every default out, and is read back by a restart."""
    system = build_system(specification)
    resolved = parameters_of(system, specification)
    assert resolved["dt"] == system.dt
    assert build_system(resolved) == system


def refusal(specification):
    with pytest.raises(UserError) as caught:
        build_system(specification)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ON_A_GRID)
def test_an_odd_grid_is_refused_with_its_value(kind):
    """Nyquist, which several operators treat apart, exists on even grids only."""
    message = refusal({"kind": kind, "grid": 31})
    assert "system.grid=31" in message and "multiple of 2" in message


@pytest.mark.parametrize("kind", SYSTEMS)
def test_an_unknown_parameter_is_refused_with_the_nearest_one(kind):
    """A misspelt parameter would otherwise run a long experiment at its default."""
    message = refusal({"kind": kind, "dtt": 0.1})
    assert "unknown key 'system.dtt'" in message
    assert "did you mean 'dt'?" in message


def test_an_impossible_value_is_refused():
    """A nan would spread through the whole ensemble before anyone looks."""
    for value in (0.0, -1.0, float("nan"), float("inf")):
        assert "system.dt" in refusal({"kind": "allen_cahn", "dt": value})


def test_a_linear_system_that_runs_away_is_refused():
    """It has no stationary state, so there is nothing to respond."""
    message = refusal({"kind": "linear", "matrix": [[-1.0]], "noise": [[1.0]]})
    assert "system" in message and "eigenvalue of real part -1" in message


def test_an_unknown_kind_is_refused_with_what_is_known():
    """The nearest name if there is one, all names in any case."""
    near = refusal({"kind": "alen_cahn"})
    assert "did you mean 'allen_cahn'?" in near
    for kind in (None, 3, ["allen_cahn"], "lorenz"):
        message = refusal({"kind": kind})
        assert all(name in message for name in SYSTEMS) and "module:Class" in message


SYSTEM_OF_A_USER = '''
from workflow.interfaces import Field


class Decay:
    """A number that forgets a fraction of itself every step."""

    fields = (Field("x", "a number"),)
    shape = ()
    noise_shape = (1,)
    initial_shape = ()
    homogeneous = False

    def __init__(self, rate, dt=0.5):
        self.rate, self.dt = rate, dt

    def initial(self, normals):
        return {"x": normals}

    def step(self, state, normals):
        return {"x": (1 - self.rate * self.dt) * state["x"] + normals[:, 0]}

    def observe(self, state):
        return state["x"][:, None]

    def displace(self, state, displacement):
        return {"x": state["x"] + displacement[:, 0]}


class NoSystem:
    fields = ()
'''


@pytest.fixture
def module_of_a_user(tmp_path, monkeypatch):
    (tmp_path / "equations_of_a_user.py").write_text(SYSTEM_OF_A_USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "equations_of_a_user"


def test_a_class_of_the_user_is_a_system(module_of_a_user):
    """An equation of one's own needs no line in this package, and need not be a field."""
    specification = {"kind": f"{module_of_a_user}:Decay", "rate": 1.0}
    system = build_system(specification)
    state = start(system, range(3), torch.float64)
    kicked = system.displace(state, torch.ones(3, 1, dtype=torch.float64))
    quiet = torch.zeros(3, *system.noise_shape, dtype=torch.float64)
    response = system.observe(system.step(kicked, quiet)) - system.observe(
        system.step(state, quiet)
    )
    torch.testing.assert_close(response, torch.full((3, 1), 0.5, dtype=torch.float64))
    assert parameters_of(system, specification) == specification


def test_mistakes_in_naming_a_class_are_refused(module_of_a_user):
    """Each refusal says what to change: the path, the parameters, or the class."""
    assert "PYTHONPATH" in refusal({"kind": "no_such_module_here:Decay"})
    assert "PYTHONPATH" in refusal({"kind": f"{module_of_a_user}:Growth"})
    assert "rat" in refusal({"kind": f"{module_of_a_user}:Decay", "rat": 1.0})
    message = refusal({"kind": f"{module_of_a_user}:NoSystem"})
    assert "noise_shape" in message and "displace" in message
    assert "a.b:" in refusal({"kind": "a.b:"})
    assert ":Decay" in refusal({"kind": ":Decay"})
