"""Says which of the 17 features a tenant's plan includes, and in which mode."""
