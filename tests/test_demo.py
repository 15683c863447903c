import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LARGE = json.loads((ROOT / "benchmarks" / "results" / "gpu.json").read_text())["figures"]


def test_the_demo_goes_from_real_weights_to_a_refitted_engine_and_leaves_nothing(tmp_path: Path) -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "engine 2: refitted with weight version 2, 2 tensors changed" in demo.stdout
    similar = next(line for line in demo.stdout.splitlines() if "2 The kitten is napping" in line).split("│")[2:6]
    assert float(similar[0]) > 0.5 > max(float(similar[2]), float(similar[3]))  # cats, not central banks
    gained = next(line for line in demo.stdout.splitlines() if "refit of all weights, verified" in line)
    seconds, times = (float(cell.split()[0]) for cell in gained.split("│")[2:4])
    assert times == pytest.approx(LARGE["build_large"]["job_s"] / seconds, rel=0.01)
    assert "on an NVIDIA H100" in demo.stdout
    assert list(tmp_path.iterdir()) == []
