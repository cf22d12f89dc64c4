"""Configuration: what it may build, and which values it may hold."""
