"""The pretend device, where torch can be told of one."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def pretend_device():
    """Have torch know the device; it does so until the process ends, and finds it where one is attached."""
    from torch.utils import backend_registration

    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip(f"torch {torch.__version__} takes no backend written in Python")
    if torch.accelerator.is_available():
        pytest.skip("torch has one accelerator in a process, and here a real one")
    from .pretend import register

    register()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield
