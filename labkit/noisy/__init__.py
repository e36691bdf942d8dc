"""Who slows whom down: the program at work, its answer, the live table, recordings."""
