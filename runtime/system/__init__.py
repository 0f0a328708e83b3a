"""What the operating system does for the rest: files, locks, facts about the machine."""
