"""Encoding around the cache: only what is missing is decoded and computed."""
