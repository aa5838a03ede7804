"""A camera that watches the sky: its log, what is made of it, and archives of frames."""
