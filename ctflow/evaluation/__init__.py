"""Settings, protocols, the measuring module and the report page."""
