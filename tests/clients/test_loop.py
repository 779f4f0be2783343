"""runs/loop.sh end to end: logs, model, lists, bids, events, tables, the next model, its bids, their replay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..serve.bidder import free_port

ROOT = Path(__file__).parents[2]
CONFIG = """
run = "tiny"
work = "{work}"
threads = 1
[data]
source = "world"
world_users = 30
world_ads = 30
world_contents = 6
[semid]
encoder = "{encoder}"
levels = [8, 6]
collisions = 24
[tune]
backbone = "{backbone}"
layers = 0
max_steps = 2
batch_tokens = 800
described = 0
short_tokens = 150
long_tokens = 60
[generate-lists]
state = "{work}/state"
beam = 30
top = 30
[serve]
state = "{work}/state"
port = {port}
manage_port = {manage_port}
exploration = 0.3
beam = 8
"""


@pytest.mark.soak
def test_next_model_learns_from_served_events(tiny_encoder, tiny_llama, tmp_path):
    config = tmp_path / "loop.toml"
    config.write_text(
        CONFIG.format(
            work=tmp_path, encoder=tiny_encoder, backbone=tiny_llama, port=free_port(), manage_port=free_port()
        )
    )
    sizes = {"LOOP_USERS": "40", "LOOP_ROUNDS": "4", "OMP_NUM_THREADS": "1"}
    paths = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(ROOT / "runs" / "loop.sh"), str(config)],
        env=os.environ | sizes | paths,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "conv events sent, logged",
        "users, ads and values of the conversions, in the new tables: yes",
        "replay: ",
    ):
        assert line in done.stderr
