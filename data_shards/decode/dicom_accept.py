"""Which DICOM objects are radiographs, and which may have names in their pixels."""

from typing import Any, Literal

from data_shards.decode.bit_depth import DAMAGED, RadiographError
from data_shards.decode.dicom_header import MODALITIES, element, word, words

_DIRECTORY = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and .7.1 to .7.4, its forms of several frames
_MODALITY_OF_CLASS = {
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.3": "IO",
    "1.2.840.10008.5.1.4.1.1.1.3.1": "IO",
}
_VOLUMES = ("1.2.840.10008.5.1.4.1.1.13.1.1", "1.2.840.10008.5.1.4.1.1.13.1.2", "1.2.840.10008.5.1.4.1.1.13.1.3")
"""X-ray 3D angiographic, craniofacial and breast images."""
_OTHERS = {
    "CT": "computed tomography",
    "MR": "magnetic resonance",
    "US": "ultrasound",
    "XC": "photographs",
    "GM": "microscopy",
    "SM": "slide microscopy",
    "ES": "endoscopy",
    "OP": "ophthalmic photographs",
    "OCT": "optical coherence tomography",
    "MG": "mammography",
    "XA": "angiography",
    "RF": "fluoroscopy",
    "NM": "nuclear medicine",
    "PT": "positron emission tomography",
    "RTIMAGE": "radiotherapy",
    "IOL": "lens measurements",
    "SEG": "segmentations",
    "DOC": "documents",
    "SR": "reports",
    "PR": "presentation states",
    "KO": "selections of keys",
    "OT": "unspecified",
}
"""Modalities of other pictures (DICOM PS3.3, C.7.3.1.1.1) that are refused by name."""
_REMEDY = "if it is a radiograph, save it as an image file, or with modality IO, PX, DX, CR or RG"


def check_kind(header: Any, burned_in: Literal["reject", "keep"]) -> None:
    """Raise RadiographError for what is no radiograph, or may have names burned in.

    Names may stand in pixels where BurnedInAnnotation is YES, in secondary captures and saved screens, and where
    ConversionType says that an image did not come straight from a digital device (workstation, scanner, film, video,
    drawing). Of several values the worst counts.
    """
    stored_as = str(element(header.file_meta, "MediaStorageSOPClassUID", ""))
    if stored_as == _DIRECTORY or element(header, "DirectoryRecordSequence") is not None:
        raise RadiographError("a DICOMDIR: an index of other files, without an image")
    kind = str(element(header, "SOPClassUID", ""))
    modality = word(header, "Modality") or _MODALITY_OF_CLASS.get(kind, "")
    captured = any(f"{uid}.".startswith(f"{_SECONDARY_CAPTURE}.") for uid in (kind, stored_as))
    captured |= "SCREEN SAVE" in words(header, "ImageType")
    converted = not {"", "DI"}.issuperset(words(header, "ConversionType"))
    if "PixelData" not in header:
        if "Rows" not in header and kind:
            raise RadiographError("a DICOM object without an image (report, presentation state, document or such)")
        floating = "FloatPixelData" in header or "DoubleFloatPixelData" in header
        raise RadiographError("floating-point DICOM, which radiographs are not" if floating else DAMAGED)
    if kind in _VOLUMES:
        raise RadiographError("a DICOM volume, not a radiograph: export the radiographs made of it")
    taken = (*MODALITIES, "OT", "") if burned_in == "keep" and captured else MODALITIES
    if burned_in == "reject" and (captured or converted):
        raise RadiographError(
            "a DICOM secondary capture, which may have names in its pixels: --burned-in keep takes it"
        )
    if burned_in == "reject" and any(said.startswith("Y") for said in words(header, "BurnedInAnnotation")):
        raise RadiographError("DICOM says that text is burned into its pixels: --burned-in keep takes it")
    if modality in taken:
        return
    if not modality:
        raise RadiographError(f"DICOM without a modality: {_REMEDY}")
    named = f"{modality} ({_OTHERS[modality]})" if modality in _OTHERS else "one that is not of radiographs"
    raise RadiographError(f"the DICOM modality is {named}: {_REMEDY}")
