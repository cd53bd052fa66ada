"""The executor: a plan carried out."""
