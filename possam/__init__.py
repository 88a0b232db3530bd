"""PosSAM: an open-vocabulary panoptic segmenter, and the pipeline that reproduces its paper.

The paper is arXiv 2403.09620.
"""

__version__ = "0.1.0"
