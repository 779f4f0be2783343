"""One file per data set; each has one ``read(...) -> tables.Tables``. A user's own logs come in by ``files``."""
