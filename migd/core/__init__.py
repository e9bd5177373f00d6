"""What is decided, and nothing else: profiles, placement, plans, job states. No I/O, no clock."""
