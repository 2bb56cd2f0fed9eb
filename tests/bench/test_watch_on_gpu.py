from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from support import Done

pytestmark = pytest.mark.gpu


def test_readings_of_a_real_gpu_are_complete_and_plausible(cli: Callable[..., Done]) -> None:
    done = cli("watch", "--once", "--format", "json")
    assert done.code == 0, done.err
    (gpu, *_) = json.loads(done.out)["gpus"]
    print(gpu)
    readings = gpu["readings"]
    assert gpu["name"].startswith("NVIDIA")
    assert 0 < readings["memory_used"] < readings["memory_total"]
    assert 0 <= readings["utilisation"] <= 1
    assert 10 < readings["temperature"] < 110
    assert 1e8 < readings["sm_clock"] < 5e9
    assert readings["pcie_in"] >= 0
    assert readings["pcie_out"] >= 0
