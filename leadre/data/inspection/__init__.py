"""A folder of unknown logs -> a config that reads it: ``excerpts``, then ``roles`` of columns, then a ``draft``."""
