import os

import pytest
from hypothesis import HealthCheck, settings

from fedmpi.sparse import kernels_portable

settings.register_profile("default", max_examples=200, deadline=None)
settings.register_profile(
    "ci", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def _implementations():
    """Every implementation that this machine can run: the portable one, and each level of the compiled one."""
    try:
        from fedmpi.sparse import _native
    except ImportError:
        return ["portable"]
    return ["portable", *_native.levels()]


@pytest.fixture(params=_implementations())
def implementation(request, monkeypatch):
    """Run a test once per implementation, through the public functions."""
    if request.param == "portable":
        module = kernels_portable
    else:
        from fedmpi.sparse import _native as module

        best = module.level()
        module.set_level(request.param)
    for user in ("fedmpi.sparse.kernels", "fedmpi.sparse.checksum", "fedmpi.sparse.mask", "fedmpi.sparse.values"):
        monkeypatch.setattr(f"{user}.implementation", lambda: module)
    yield request.param
    if module is not kernels_portable:
        module.set_level(best)
