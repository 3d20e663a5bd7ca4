"""Look for changes without labels: drifting scores, thresholds for another domain, cohorts that do not fit."""
