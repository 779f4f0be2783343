"""The version of the release, which `leadre/__init__.py` exports."""

__version__ = "0.1.0"
