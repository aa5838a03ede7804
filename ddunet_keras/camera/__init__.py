"""A camera that is watched: what is recorded, and who is told.

NumPy and Pillow, and an extra for each optional thing.
"""
