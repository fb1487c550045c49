"""The driver, the incomplete stage and the reports, piece by piece."""
