"""Numbered SQL files of the schema `audit`; services/common/postgres/migrations.py runs them."""
