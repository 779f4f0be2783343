"""LEADRE: display ads retrieved by a language model that writes their semantic IDs.

The stages, in the order in which they run; each is a folder here, a verb on the command line and an artifact on disk:

data      logs -> clean tables, histories, requests
semid     ads -> semantic IDs
lm        (a library, no verb) the language model: what tuning and generation share
tune      histories and IDs -> a fine-tuned language model
generate  request -> candidate ads, all of them live
evaluate  logs -> numbers with intervals, and a report
"""

__version__ = "0.1.0"
