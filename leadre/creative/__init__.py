"""Creative: an ad of the catalogue -> an HTML banner."""
