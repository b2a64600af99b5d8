"""Responses to small forcings, with error bars: from unperturbed data and scores, or directly.

    correlation    lagged products of channels, summed over blocks of time, per member
    gfdt           response over the displacement, for labelled homogeneous fields
    matrix         response of every place to every place, where the statistics depend on it
    direct         the truth: pairs of runs with and against a kick
    recalibration  lag 0 made the identity where the score sees the mode
    statistics     error bars from members, distances free of noise
    probes         what is kicked and what is watched

Labelled (xarray) outside, array kernels inside.
"""
