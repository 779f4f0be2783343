"""One of the processes of test_train.py, started by torchrun: trains, and writes its weights into a folder."""

import sys
from pathlib import Path

from safetensors.numpy import save_file

from leadre.rank import processes
from leadre.rank.models.registry import RANKERS
from tests.rank.test_train import fit

with processes.joined() as group:
    assert group.count == 2
    weights, _ = fit(RANKERS["tin"], processes=group)
    save_file(weights, Path(sys.argv[1]) / f"{group.number}.safetensors")
