"""The last model of a run: which of `tune-sft` and `tune-dpo` serves users."""

from __future__ import annotations

from pathlib import Path

from leadre import artifact, config, progress
from leadre.errors import ArtifactError


def latest(config: config.Common) -> Path:
    """Folder of the run's last model, which serves users: `tune-dpo`, unless `tune-sft` was trained again since."""
    sft = config.folder("tune-sft")
    dpo = config.folder("tune-dpo")
    if not (sft.exists() and dpo.exists()):
        return dpo if dpo.exists() else sft
    try:
        sft_hash = artifact.glance(sft, artifact.MODEL).hash
        if artifact.glance(dpo, artifact.MODEL).meta["parents"].get(sft.name) == sft_hash:
            return dpo
    except ArtifactError:
        return dpo  # the caller that reads the model reports what is wrong with it
    progress.say(f"{dpo} was trained from an older model than {sft}, which is used; run `leadre tune dpo`")
    return sft
