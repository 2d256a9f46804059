"""Analysis of a sweep's results: summaries, contrasts, gaps, noise, power, and the window audit."""
