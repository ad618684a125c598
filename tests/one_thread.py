"""One thread: the models here are small, and threads that wait for each other cost more than they bring.

Runs are also the same to the last bit only on as many threads, here and in processes that are started.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MKL_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


one_thread = pytest.fixture(autouse=True, scope="package")(single_thread)
