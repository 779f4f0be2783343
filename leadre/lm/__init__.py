"""Model library of tuning and generation: the backbone with code rows, its pointer and prior, trie-masked beam search.

Terms that every module here uses:

thread  the prompt of one user over consecutive requests: a fixed prefix, then visit after visit. Each request is
        answered at one position of its thread (`leadre.lm.beam.BeamRequest`) and attends to nothing behind it.
view    the live set of a request: ``all`` has every live object, ``new`` leaves out the objects of the user's history.
prior   the weight of each live object before the model is evaluated (`leadre.lm.prior`). A `Mask` of live objects sums
        it over the objects below each code; its logarithm is added to the model's scores.
"""
