"""Datasets in files of one's own: a manifest that says where features, labels and splits are, and everything that reads them."""
