"""Scoring: files in, files out, and nothing imported that a model does not need."""
