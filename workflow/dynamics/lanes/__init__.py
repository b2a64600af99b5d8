"""Systems stepped with members in the SIMD lanes: the CPU engine of ensembles.

`*.h` and `lanes.cpp` are the kernels, built with the package where there is a compiler;
`library` loads the build that the processor runs, `equations` hands it the symbols of a system.
"""
