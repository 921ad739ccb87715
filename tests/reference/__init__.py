"""Slow, obvious implementations that the batched ones are compared with."""
