"""Builds and renders reports from the records of a run; runs no model."""
