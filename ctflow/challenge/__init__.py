"""``ctflow challenge``: the text-to-CT task of the VLM3D challenge, by its container's contract."""
