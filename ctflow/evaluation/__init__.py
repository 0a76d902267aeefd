"""Settings, protocols, analyses and the report."""
