"""What crosses packages: walls, install, documentation, and whole runs."""
