"""Answers Allow, Deny or Intercept for every call that a proxy asks about."""
