"""The formats that results can be written in: their names, and the code that writes them.

An entry is written ``module:name``, so that a result needs none of the writers' packages.
"""

FORMATS = {
    "coco-panoptic": "possam.pictures.exports.coco:PanopticWriter",
    "coco-instances": "possam.pictures.exports.coco:InstancesWriter",
    "coco-polygons": "possam.pictures.exports.coco:PolygonsWriter",
    "label-png": "possam.pictures.exports.label_png:LabelWriter",
    "yolo": "possam.pictures.exports.yolo:YoloWriter",
    "labelme": "possam.pictures.exports.labelme:LabelMeWriter",
    "geojson": "possam.pictures.exports.geojson:GeoJsonWriter",
    "npz": "possam.pictures.exports.npz:EmbeddingsWriter",
}
"""Subclasses of :class:`possam.pictures.exports.writer.Writer`."""
