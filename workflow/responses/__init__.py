"""Responses to small forcings, with error bars: from unperturbed data and scores, or directly.

    correlation    R(lag, r) = -< x s > streamed over blocks of time, per member
    gfdt           the same for labelled arrays
    direct         the truth: pairs of runs with and against a kick
    recalibration  lag 0 made the identity where the score sees the mode
    statistics     error bars from members, distances free of noise
    probes         what is kicked and what is watched
    forecast       answers to any forcing: step, harmonic, f(t), f(t, y, x)
    forcing        forcings read from files and checked
    impulses       a labelled response and its resamples through any linear map
    quadrature     integrals over the lag as weights
    times          even time axes, dates and units

Labelled (xarray) outside, array kernels inside.
"""
