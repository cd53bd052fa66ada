"""One video on several cards: processes, one a card, that share the predictions of its steps."""
