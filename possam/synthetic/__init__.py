"""The procedural mini world: scenes, upstream-shaped archives, and the small SAM and CLIP towers
trained on them.
"""
