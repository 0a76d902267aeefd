"""Real scans in: CT-RATE's tree or any folder of NIfTI, DICOM, NRRD and MetaImage files to slice shards."""
