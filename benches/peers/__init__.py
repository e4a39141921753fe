"""Sconce beside other inference engines: see README.md."""
