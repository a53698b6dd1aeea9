"""The manifest: the table of images, read, checked, converted (`data convert`, `data check`)."""
