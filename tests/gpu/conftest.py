"""What tests on a GPU need beside the card."""

import pytest


@pytest.fixture
def two_ranks():
    """Skips where ranks cannot be started; gives what starts them."""
    pytest.importorskip("mpi4py", reason="no mpi4py")
    launch = pytest.importorskip("hpc.launch", reason="no psutil")
    launchers = pytest.importorskip("hpc.launchers", reason="no psutil")
    try:
        launchers.find_mpiexec()
    except launch.LaunchError as error:
        pytest.skip(str(error))
    return launch.launch_ranks, launchers.Layout(2)
