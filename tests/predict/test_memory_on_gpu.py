"""`predict` on a real GPU whose memory another allocation takes and gives back, in onnxruntime's CUDA provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import DIGITS, EVAL

from trtopt.commands.predict import predict
from trtopt.engine.cuda.device import Device, open_device
from trtopt.events import Event, Noted
from trtopt.plan import DataPlan, PredictPlan

pytestmark = pytest.mark.gpu
SAMPLES, TAKEN, GIVEN_BACK = 40_000, 8_000, 16_000


class Images:
    """Images by index, during some of which nearly all memory of the GPU is taken."""

    digest = "digits"
    device: Device

    def __init__(self) -> None:
        self._images = np.load(EVAL)["input"]

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == TAKEN:
            device = open_device()  # in this thread; it stays open, as does its memory
            self.taken = device.allocate(int(device.free_bytes() * 0.95))
        elif index == GIVEN_BACK:
            open_device()  # a thread needs the context to give memory back
            self.taken.close()
        return {"input": self._images[index % len(self._images)]}


@pytest.fixture
def device() -> Iterator[Device]:
    with open_device() as opened:
        yield opened


def test_the_batch_is_halved_while_memory_is_tight_and_grows_again(device: Device, tmp_path: Path) -> None:
    Images.device = device
    events: list[Event] = []
    plan = PredictPlan(
        run=DIGITS,
        out=tmp_path / "rows.jsonl",
        data=DataPlan(source=f"{__name__}:Images"),
        batch=64,
        device="cuda",
    )
    result = predict(plan, emit=events.append)
    remarks = [event.message for event in events if isinstance(event, Noted)]
    print(result)
    print(*remarks, sep="\n")
    assert any("MiB of memory are free" in remark for remark in remarks)
    assert remarks[-1] == "batch 64: memory is free again"
    assert result.rows == SAMPLES
    assert not result.failed
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(rows) == SAMPLES
    first, again = (json.loads(rows[index]) for index in (5, 10_005))
    assert first["error"] is again["error"] is None
    assert first["classes"][0] == again["classes"][0]
    assert first["scores"] == pytest.approx(again["scores"], rel=1e-4)
