"""Evidence about a fitted model."""
