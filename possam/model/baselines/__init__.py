"""Parts that belong only to systems that PosSAM is compared with."""
