"""What is asked: InfiniteBench's own examples, generated ones at any length, LongBench v2."""
