"""Datasets in the user's files: a manifest that says where features, labels and splits are, and all that reads them."""
