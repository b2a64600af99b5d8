"""The kernels of the CPU engine: one source, built for three kinds of processor.

All are optional. What a compiler refuses, or no compiler at all, is no error: the torch engine
steps every system without them. Everything else about the package is in pyproject.toml.
"""

from glob import glob

from setuptools import Extension, setup

LANES = "workflow/dynamics/lanes"
PROCESSORS = {
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    "avx2": ["-march=x86-64-v3"],
    "plain": [],
}

setup(
    ext_modules=[
        Extension(
            f"{LANES.replace('/', '.')}._{name}",
            sources=[f"{LANES}/{name}.cpp"],
            depends=glob(f"{LANES}/*.h"),
            extra_compile_args=["-std=c++17", "-O3", "-fno-math-errno", *flags],
            optional=True,
        )
        for name, flags in PROCESSORS.items()
    ]
)
