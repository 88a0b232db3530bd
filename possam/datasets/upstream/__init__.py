"""The data sets, one module each, named as its data set; see docs/add-a-dataset.md."""
