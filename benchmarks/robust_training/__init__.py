"""Does training for the margin make networks more robust? Equal epochs, strong peers, attacks."""
