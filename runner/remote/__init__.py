"""ComfyUI servers as workers: a workflow is checked, sent, followed and its files fetched, from one of several."""
