"""webdataset shards, written and read by seek (`data shard`)."""
