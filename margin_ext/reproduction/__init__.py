"""The authors' published figures beside ours."""
