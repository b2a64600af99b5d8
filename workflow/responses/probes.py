"""What is kicked and what is watched, by name.

A perturbation is a direction u(x) in which the state is displaced; an observable is a function
A(x) of the state. For a constant u the conjugate variable is B = -u . s, so a kick of one pixel
needs the score of that pixel alone, and all pixels of a homogeneous field are the same kick.

A new probe is one line here: `responses` labels its axes with the names.
"""

from __future__ import annotations

from workflow.interfaces import Probe

OBSERVABLES = {"field": Probe(name="field")}
"""A(x) by name. field: every pixel of one saved field, in units of the field."""

PERTURBATIONS = {"pixel": Probe(name="pixel")}
"""u(x) by name. pixel: one pixel of one saved field moved by one unit of the field, div u = 0."""


def label(probe: Probe, field: str, *, fields: int) -> str:
    """Label of a probe of one field along the axes of `response.zarr`.

    Args:
        probe: observable or perturbation.
        field: name of the saved field that it acts on.
        fields: number of saved fields; the name of the field is added where there are several.

    Returns:
        As "pixel" or "pixel:vorticity".
    """
    return probe.name if fields == 1 else f"{probe.name}:{field}"
