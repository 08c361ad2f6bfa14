"""The one part of the build that pyproject.toml cannot say: an optional extension with its own compiler flags."""

from setuptools import Extension, setup

NATIVE = "fedmpi/sparse/native"

# -ffp-contract=off: a fused multiply-add would give other bits than the other kernels. optional: without a compiler
# the package installs all the same and runs on those in torch; `fedmpi doctor` says which ones are in use.
setup(
    ext_modules=[
        Extension(
            "fedmpi.sparse._native",
            [f"{NATIVE}/module.c"],
            depends=[f"{NATIVE}/{name}.h" for name in ("common", "scalar", "avx2", "avx512", "values")],
            extra_compile_args=["-O3", "-ffp-contract=off"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
