"""Retrieval channels beside the language model: baselines of evaluation, fallbacks of serving.

One contract (``contract.py``): fitted on training time only, a channel scores every live ad of a Moment.
"""
