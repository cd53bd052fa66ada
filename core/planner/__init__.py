"""The planner: where everything goes, as pure arithmetic."""
