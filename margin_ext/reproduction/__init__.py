"""The authors' published figures and ours, side by side."""
