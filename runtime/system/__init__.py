"""Services of the operating system: files, locks, facts about the machine."""
