"""How the built-in models were made."""
