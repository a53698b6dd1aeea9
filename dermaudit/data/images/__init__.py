"""Image files as uint8 arrays, decoded safely."""
