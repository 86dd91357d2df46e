"""One radiograph in, its multi-crop views out."""
