"""Responses to small forcings, with error bars: from unperturbed data and scores, or directly.

    correlation    R(lag, r) = -< x s > streamed over blocks of time, per member
    gfdt           the same for labelled arrays
    direct         the truth: pairs of runs with and against a kick
    recalibration  lag 0 made the identity where the score sees the mode
    statistics     error bars from members, distances free of noise
    probes         what is kicked and what is watched
    divergence     div u, exact or by random probes
    directions     any u(x) of the state, and its conjugate variable
    parameters     changed parameters of the drift and of the noise
    checks         a line of a report that can fail
    diagnostics    identities of score, drift and stationarity
    langevin       whether a score keeps its own data

Labelled (xarray) outside, array kernels inside.
"""
