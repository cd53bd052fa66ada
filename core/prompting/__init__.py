"""A short line → the rich prompt that video and image models were trained on."""
