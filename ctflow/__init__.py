"""ctflow: a radiology report goes in, a whole 3D chest CT in Hounsfield units comes out."""

import os
import pwd

__version__ = "0.1.0"

try:
    pwd.getpwuid(os.getuid())
except KeyError:  # a container's user without an entry: libraries ask for the name when they are imported
    os.environ.setdefault("USER", f"uid{os.getuid()}")
