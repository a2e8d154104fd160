"""Drafters that are exact and tested, and were measured to lose on the machines at hand (docs/drafting.md)."""
