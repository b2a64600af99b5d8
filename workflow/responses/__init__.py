"""Responses to small forcings, with error bars: from unperturbed data and scores, or directly.

    observables    A(x) by name, perturbations u(x) by name; probes: what they share
    channels       the numbers whose lag correlations make all responses of a run
    sums           sums of their lagged products over blocks of time
    sources        scores and paired runs, which answer with any weights over members or blocks
    assemble       from sources to responses with error bars; labels: as datasets
    stein          the Stein identity of a score and its repair, for any channels
    correlation    lagged products of channels, summed over blocks of time, per member
    gfdt           response over the displacement, for labelled homogeneous fields
    matrix         response of every place to every place; matrix_sums: from stored sums
    direct         the truth: pairs of runs with and against a kick
    pairs          how many of them a direct response rests on
    recalibration  lag 0 made the identity where the score sees the mode
    resampling     resamples of members, or of stretches of time where members are few
    statistics     error bars through any statistic, distances free of noise
    control_variates  less noise where the score is exact
    divergence     div u, exact or by random probes
    directions     any u(x) of the state, and its conjugate variable
    parameters     changed parameters of the drift and of the noise
    forecast       answers to any forcing: step, harmonic, f(t), f(t, y, x)
    forcing        forcings read from files and checked
    impulses       a labelled response and its resamples through any linear map
    quadrature     integrals over the lag as weights
    times          even time axes, dates and units
    checks         a line of a report that can fail
    diagnostics    identities of score, drift and stationarity
    langevin       whether a score keeps its own data

Labelled (xarray) outside, array kernels inside.
"""
