"""What of a DICOM header is used: technical facts of closed lists, the pixel's shape, and whose image it is."""

import math
from typing import Any

from pydicom import Dataset

MODALITIES = ("IO", "PX", "DX", "CR", "RG")
"""Intra-oral, panoramic, digital, computed and film radiography (DICOM PS3.3 C.7.3.1.1.1)."""

_NUMBERS = {
    "kvp": ("KVP", 10, 200),
    "tube_current_ma": ("XRayTubeCurrent", 0.01, 2000),
    "exposure_time_ms": ("ExposureTime", 0.01, 100_000),
    "exposure_mas": ("Exposure", 0.001, 10_000),
    "source_to_detector_mm": ("DistanceSourceToDetector", 10, 5000),
    "source_to_patient_mm": ("DistanceSourceToPatient", 10, 5000),
    "magnification": ("EstimatedRadiographicMagnificationFactor", 0.5, 10),
    "bits_allocated": ("BitsAllocated", 1, 64),
    "bits_stored": ("BitsStored", 1, 64),
}
"""Fact: the element, and between which values it is believed."""
_PAIRS = {"pixel_spacing_mm": "PixelSpacing", "imager_pixel_spacing_mm": "ImagerPixelSpacing"}
"""Fact: the element, [between rows, between columns]."""
_LEAST_SPACING, _MOST_SPACING = 0.001, 10.0
_WORDS = {
    "modality": ("Modality", (*MODALITIES, "OT")),
    "photometric": (
        "PhotometricInterpretation",
        (
            *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"),
            *("YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"),
        ),
    ),
    "presentation_intent": ("PresentationIntentType", ("FOR PRESENTATION", "FOR PROCESSING")),
    "intensity_relation": ("PixelIntensityRelationship", ("LIN", "LOG", "DISP")),
    "detector_type": ("DetectorType", ("DIRECT", "SCINTILLATOR", "STORAGE", "FILM")),
    "lossy": ("LossyImageCompression", ("00", "01")),
    "burned_in": ("BurnedInAnnotation", ("YES", "NO")),
    "laterality": ("ImageLaterality", ("R", "L", "U", "B")),
    "body_part": (
        "BodyPartExamined",
        ("HEAD", "JAW", "MANDIBLE", "MAXILLA", "MAXILLA AND MANDIBLE", "MOUTH", "SKULL", "TEETH", "TMJ", "TOOTH"),
    ),
}
"""Fact: the element, and the only words that it may hold."""
NOBODY = {
    *("anonymous", "anonymised", "anonymized", "anonym", "anon", "deidentified", "unidentified", "pseudonymized"),
    *("unknown", "unnamed", "none", "null", "nil", "na", "noid", "nopatientid", "removed", "redacted", "deleted"),
    *("id", "patient", "patientid", "default", "empty", "blank"),
}
"""What stands for a patient's id where there is none, in small letters and digits."""


def element(header: Dataset, keyword: str, default: Any = None) -> Any:
    """The value of an element; `default` where it is absent, empty or damaged."""
    try:
        value = header.get(keyword)
    except Exception:  # pydicom parses a value when it is asked for, and raises anything on damaged ones
        return default
    return default if value is None or value == "" else value


def number(header: Dataset, keyword: str, place: int = 0) -> float | None:
    """The value of a numeric element, or of several the one at `place`; None where it is absent or none."""
    value = element(header, keyword)
    try:
        found = float(value if isinstance(value, int | float | str) else value[place])
    except Exception:
        return None
    return found if math.isfinite(found) else None


def word(header: Dataset, keyword: str) -> str:
    """The value of an element of one code string in capitals, "" where there is none."""
    value = element(header, keyword, "")
    return value.strip().upper() if isinstance(value, str) else ""


def words(header: Dataset, keyword: str) -> list[str]:
    """All values of an element of code strings, in capitals."""
    value = element(header, keyword, "")
    try:
        return [str(one).strip().upper() for one in ([value] if isinstance(value, str) else value)]
    except TypeError:  # a number
        return [str(value)]


def facts(header: Dataset, compression: str) -> dict[str, Any]:
    """The header's technical metadata: numbers within likely bounds, words of closed lists. Nothing else leaves."""
    found: dict[str, Any] = {"format": "dicom", "compression": compression}
    for fact, (keyword, least, most) in _NUMBERS.items():
        value = number(header, keyword)
        if value is not None and least <= value <= most:
            found[fact] = _short(value)
    for fact, keyword in _PAIRS.items():
        spacing = _spacing(header, keyword)
        if spacing:
            found[fact] = [_short(s) for s in spacing]
    for fact, (keyword, words) in _WORDS.items():
        if (said := word(header, keyword)) in words:
            found[fact] = said
    return found


def pixel_aspect(header: Dataset) -> float:
    """Width of a pixel over its height: by the first spacing that is declared, else PixelAspectRatio, else 1."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        if spacing := _spacing(header, keyword):
            return spacing[1] / spacing[0]
    down, across = number(header, "PixelAspectRatio", 0), number(header, "PixelAspectRatio", 1)
    return across / down if down and across and 0.1 <= across / down <= 10 else 1.0


def patient(header: Dataset) -> str:
    """The letters and digits of PatientID, in lower case; "" where it says nothing.

    That is if it is empty, all zeros, X or punctuation, or a word as "ANONYMOUS". Other ids are believed, and their
    issuer, which one system of a clinic writes and the next does not, has no say: two patients taken for one cost
    nothing, one taken for two could be on both sides of a holdout.
    """
    letters = "".join(c for c in str(element(header, "PatientID", "")).casefold() if c.isalnum())
    return "" if not letters.strip("0") or not letters.strip("x") or letters in NOBODY else letters


def _spacing(header: Dataset, keyword: str) -> tuple[float, float] | None:
    down, across = number(header, keyword, 0), number(header, keyword, 1)
    if down is None or across is None:
        return None
    return (down, across) if all(_LEAST_SPACING <= s <= _MOST_SPACING for s in (down, across)) else None


def _short(value: float) -> float | int:
    return int(value) if value == int(value) else float(f"{value:.6g}")
