"""Models of the real architectures at toy size, and writers of the files that people have of them."""
