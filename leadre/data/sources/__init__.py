"""Sources of logs: one file a data set, each with one ``read(...) -> tables.Tables``; ``files`` reads your own logs."""
