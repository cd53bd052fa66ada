"""Control videos: from frames to the gray, lines, flow, boxes, depth and poses that VACE follows."""
