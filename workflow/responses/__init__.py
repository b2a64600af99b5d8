"""Responses to small forcings, with error bars: from unperturbed data and scores, or directly.

    correlation    R(lag, r) = -< x s > streamed over blocks of time, per member
    gfdt           the same for labelled arrays
    direct         the truth: pairs of runs with and against a kick
    recalibration  lag 0 made the identity where the score sees the mode
    resampling     resamples of members, or of stretches of time where members are few
    statistics     error bars through any statistic, distances free of noise
    control_variates  less noise where the score is exact
    probes         what is kicked and what is watched

Labelled (xarray) outside, array kernels inside.
"""
