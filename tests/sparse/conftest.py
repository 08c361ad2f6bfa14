import os

import pytest
from hypothesis import HealthCheck, settings

from fedmpi.sparse import backend

settings.register_profile("default", max_examples=200, deadline=None)
settings.register_profile(
    "ci", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def _implementations():
    """Every implementation that this machine can run: NumPy, torch, and each level of the compiled one."""
    native = backend.implementations().get("native")
    return ["numpy", "torch", *(native.levels() if native else ())]


@pytest.fixture(params=_implementations())
def implementation(request, monkeypatch):
    """Run a test once per implementation, through the public functions."""
    found = backend.implementations()
    module = found.get(request.param) or found["native"]
    if module is found.get("native"):
        best = module.level()
        module.set_level(request.param)
    for user in ("fedmpi.sparse.kernels", "fedmpi.sparse.checksum", "fedmpi.sparse.mask", "fedmpi.sparse.values"):
        monkeypatch.setattr(f"{user}.implementation", lambda: module)
    yield request.param
    if module is found.get("native"):
        module.set_level(best)
