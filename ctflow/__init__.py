"""ctflow: a radiology report goes in, a whole 3D chest CT in Hounsfield units comes out."""

__version__ = "0.1.0"
