"""The formats that results can be written in: their names, and the code that writes them.

An entry is written ``module:name``, so that a result needs none of the writers' packages.
"""

FORMATS = {
    "coco-panoptic": "possam.pictures.exports.coco:write_panoptic",
    "coco-instances": "possam.pictures.exports.coco:write_instances",
    "label-png": "possam.pictures.exports.label_png:write_label_png",
    "yolo": "possam.pictures.exports.yolo:write_yolo",
    "labelme": "possam.pictures.exports.labelme:write_labelme",
    "geojson": "possam.pictures.exports.geojson:write_geojson",
    "npz": "possam.pictures.exports.npz:write_npz",
}
"""Functions of (an iterable of :class:`possam.pictures.result.Result`, a folder or a file)."""
