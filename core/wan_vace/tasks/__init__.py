"""VACE's jobs: each takes what a person has and gives a `VACETask`, built on another where one is given."""
