"""Brief to ad: so far, an HTML banner from a catalogue's ad."""
