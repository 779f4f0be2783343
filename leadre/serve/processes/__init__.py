"""The processes of a bidder: supervisor, workers, writer, model server, management."""
