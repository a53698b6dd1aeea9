"""Data sets packed as webdataset shards: tar files with an index."""
