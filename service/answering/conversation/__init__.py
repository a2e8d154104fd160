"""Questions that lean on earlier turns, and how they come to stand alone."""
