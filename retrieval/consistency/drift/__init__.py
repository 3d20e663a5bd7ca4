"""Look for changes without labels: drifting scores, and cohorts that do not fit."""
