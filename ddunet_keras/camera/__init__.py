"""A camera that is watched: what is recorded, and who is told. NumPy and Pillow only."""
