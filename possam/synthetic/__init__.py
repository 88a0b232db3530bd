"""The procedural world: scenes, archives in upstream layouts, and the small SAM and CLIP towers."""
