"""Widget choices of the control nodes, which nodes declare and core compares; free of heavy imports."""

from __future__ import annotations

# These values are saved in workflow files: changing one breaks the workflows that use it.
AS_VACE = "as VACE"

BRIGHTNESS = "brightness"
GRAY_WEIGHTS = (AS_VACE, BRIGHTNESS)

BLACK_ON_WHITE, WHITE_ON_BLACK = "black on white", "white on black"
LINES = (BLACK_ON_WHITE, WHITE_ON_BLACK)

BOX, HULL, OUTLINE = "box", "hull", "outline"
OUTLINES = (BOX, HULL, OUTLINE)

DIS, FARNEBACK = "dis", "farneback"
FLOW_METHODS = (DIS, FARNEBACK)

PER_FRAME, WHOLE_CLIP = "per frame", "whole clip"
SCALES = (PER_FRAME, WHOLE_CLIP)

OPENPOSE = "OpenPose"
POSE_COLOURS = (AS_VACE, OPENPOSE)

WHOLE_FRAME = "whole frame"
