"""Methods of `bench suppress`: one file each, found by the registry."""
