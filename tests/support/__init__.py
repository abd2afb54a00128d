"""Helpers that several test files need; no tests and no fixtures."""
