"""Messages between the processes of one bidder, and the Unix socket that carries them."""
