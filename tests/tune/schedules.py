"""A short training schedule that writes a checkpoint after every step."""

from leadre.tune.options import TrainingSchedule


def schedule(**changes):
    settings = {
        "epochs": 2,
        "max_steps": 6,
        "batch_tokens": 500,
        "learning_rate": 1e-3,
        "codes_learning_rate": 3e-3,
        "weight_decay": 0.05,
        "seed": 0,
        "validate_every": 2,
        "checkpoint_s": -1.0,  # after every step
    }
    return TrainingSchedule(**settings | changes)
