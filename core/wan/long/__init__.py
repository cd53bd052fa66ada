"""Long videos: windows that follow each other, each begun on the one before."""
