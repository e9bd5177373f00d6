"""The rest of the machine: processes, files, and what systemd is told."""
