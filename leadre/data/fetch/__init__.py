"""Tables of a log from a database and from an object store, as files."""
