"""The paper's test: scores of predictions, and the files that hold them."""
