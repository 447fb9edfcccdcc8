"""The `behavry` command: starts the services on one machine, speaks to control's REST API."""
