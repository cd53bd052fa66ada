"""The work: models, memory, files. Knows neither the nodes nor, but for `host`, the program around it."""
