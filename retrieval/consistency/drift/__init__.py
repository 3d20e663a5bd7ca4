"""What changes where nobody labels: drift of scores, thresholds for another domain, cohorts that do not fit."""
