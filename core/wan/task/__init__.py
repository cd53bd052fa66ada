"""VACE tasks: what a person has as a `VACETask`, built on another where one is given."""
