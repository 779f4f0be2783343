"""The senders of bid requests: who they are, how often they may send, and what their open bids may hold."""
