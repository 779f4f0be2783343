"""A config of a small log for `leadre train`, with tiny models."""

import pytest

CONFIG = """
run = "small"

[data]
source = "world"
world_users = 60
world_ads = 60
world_contents = 12

[semid]
encoder = "{encoder}"
levels = [8, 6]

[tune]
backbone = "{backbone}"
layers = 0
short_tokens = 150
long_tokens = 60
described = 0

[evaluate]
resamples = 20
"""


@pytest.fixture(scope="session")
def write_config(tiny_encoder, tiny_llama):
    """A function that writes the config into a folder, with further lines of sections, and returns its path."""

    def write(folder, **sections):
        text = CONFIG.format(encoder=tiny_encoder, backbone=tiny_llama)
        for section, lines in sections.items():
            header = f"[{section}]\n"
            text = text.replace(header, header + lines + "\n") if header in text else text + f"\n{header}{lines}\n"
        path = folder / "mine.toml"
        path.write_text(text)
        return path

    return write
