"""PosSAM, an open-vocabulary segmenter (arXiv 2403.09620), and the pipeline of its paper."""

__version__ = "0.2.0"
