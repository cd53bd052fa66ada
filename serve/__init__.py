"""A queue of workflows on one machine or many: jobs, workers, HTTP."""
