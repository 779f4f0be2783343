"""Bidders: the bid for one auction from the money left, the auctions left and the predicted click rate."""
