"""Samples of every form: folders, tables, arrays, shards, datasets, and files of predictions."""
