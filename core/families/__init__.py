"""Model families: what each says of itself, in one registry."""
