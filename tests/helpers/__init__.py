"""Modules without tests that tests and the scripts they start share."""
