"""The `behavry` command: starts the five services on one machine and speaks to control's REST API."""
