"""Own pictures, own words: the library behind ``possam.load`` and ``possam predict``."""
