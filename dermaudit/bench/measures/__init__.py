"""The measures of a benchmark, for many bootstrap resamples at once."""
