"""Names of a sample's fields: those that a pack writes itself, which no label may overwrite."""

FACTS = (
    *("format", "compression", "modality", "photometric", "presentation_intent", "intensity_relation", "lossy"),
    *("detector_type", "bits_allocated", "bits_stored", "pixel_spacing_mm", "imager_pixel_spacing_mm", "magnification"),
    *("kvp", "tube_current_ma", "exposure_time_ms", "exposure_mas", "source_to_detector_mm", "source_to_patient_mm"),
    *("burned_in", "laterality", "body_part", "window"),
)
"""Technical metadata that a sample may carry: numbers and words of closed lists."""
RESERVED = frozenset(
    (
        *FACTS,
        *("id", "patient", "source", "radiograph", "pixels", "hash", "frame", "box", "pixel_aspect"),
        *("bits", "source_bits", "width", "height"),
    )
)
"""Fields of a sample that no label may overwrite."""
