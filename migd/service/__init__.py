"""The use cases, and the story of one job. Knows no bus."""
