"""What the generated cases came to, kept so that the session's end can state it."""

TOLD: list[str] = []
