"""Inspection: what can be said of measurements and their channel before anything is trained."""
