"""Datasets, splits, the input pipeline and procedural skies."""
