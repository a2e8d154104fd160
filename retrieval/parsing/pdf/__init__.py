"""PDF: its text in the order in which people read it, and the way back to the glyphs on the page."""
