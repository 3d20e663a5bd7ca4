"""Image retrieval with one calibrated threshold."""
