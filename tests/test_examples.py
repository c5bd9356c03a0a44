"""The examples of docs/examples run as they stand, and leave in the logger what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
LIMIT_S = 100

READ_EVENTS = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(sys.argv[1]).Reload()
tags = events.Tags()
scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
images = {tag: [len(event.encoded_image_string) for event in events.Images(tag)] for tag in tags["images"]}
print(json.dumps({"scalars": scalars, "images": images}))
"""


def run(*arguments: str) -> str:
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=LIMIT_S)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.timeout(2 * LIMIT_S)
def test_validation_under_ddp_logs_both_metrics_and_both_rise(tmp_path: Path) -> None:
    run(str(EXAMPLES / "lightning_validation.py"), "--devices", "2", "--logdir", str(tmp_path))
    folders = list(tmp_path.glob("personalization/version_*"))
    assert len(folders) == 1
    logged = json.loads(run("-c", READ_EVENTS, str(folders[0])).splitlines()[-1])
    for name, gain in (("val/cp", 0.3), ("val/pf", 0.3)):  # it is about 0.6 for each
        steps, values = zip(*logged["scalars"][name], strict=True)
        assert steps[0] == 0
        assert len(set(steps)) >= 4
        assert values[-1] > values[0] + gain, f"{name}: {values}"
    assert min(logged["images"]["val/generated"]) > 1000
