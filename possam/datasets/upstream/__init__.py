"""One module per data set, with the data set's name; see docs/add-a-dataset.md."""
