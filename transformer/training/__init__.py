"""One step, the loop, and what keeps it alive; knows neither models nor data."""
