"""Configuration files become frozen values here, judged with file, line and key."""
