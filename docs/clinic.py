"""Write an archive as clinics have them: `python docs/clinic.py OUT [FIRST COUNT]`. docs/archive.md begins with it.

Radiographs of 240 phantom patients (or of COUNT, from number FIRST on) from four systems of two decades, in one tar:
PNG in a zip, JPEG in a compressed tar, 16-bit TIFF that hold 12 bits, and DICOM without suffix, inverted and with the
patient in the header. One COCO file has the boxes of all. With the warts of such archives: a copy, a copy saved anew, a
captured screen, damaged and empty files, a box beside the film and one around nothing, litter.
"""

import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Callable

import numpy as np
from PIL import Image
from pydicom import FileMetaDataset
from pydicom.dataset import FileDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless

from data_shards.phantom.render import Phantom, render_radiograph

SEED = 3
INTRAORAL, SECONDARY = (
    "1.2.840.10008.5.1.4.1.1.1.3",
    "1.2.840.10008.5.1.4.1.1.7",
)  # PS3.4 B.5, digital X-ray and capture


def png(pixels: np.ndarray, patient: int) -> bytes:
    return saved(pixels, "png")


def jpeg(pixels: np.ndarray, patient: int) -> bytes:
    return saved(pixels, "jpeg", quality=92, comment=f"patient {patient}")


def tiff(pixels: np.ndarray, patient: int) -> bytes:
    return saved(deep(pixels), "tiff", compression="tiff_lzw", tiffinfo={306: "2009:05:14 10:12:30"})


def dicom(pixels: np.ndarray, patient: int, sop: str = INTRAORAL) -> bytes:
    """12 bits, MONOCHROME1 (dense is dark), every second one compressed, the patient's name and birthday in it."""
    about = FileMetaDataset()
    about.TransferSyntaxUID = ExplicitVRLittleEndian
    about.MediaStorageSOPClassUID, about.MediaStorageSOPInstanceUID = UID(sop), UID(f"1.2.3.{patient}")
    image = FileDataset(None, {}, file_meta=about, preamble=bytes(128))
    image.SOPClassUID, image.SOPInstanceUID = about.MediaStorageSOPClassUID, about.MediaStorageSOPInstanceUID
    image.PatientName, image.PatientID, image.PatientBirthDate = f"Doe^Jane {patient}", f"{patient:05d}", "19610723"
    image.StudyDate, image.Modality, image.PixelSpacing = "20180302", "IO", [0.03, 0.03]
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME1", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelData = (4095 - deep(pixels)).tobytes()
    if patient % 2:
        image.compress(RLELossless)
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def deep(pixels: np.ndarray) -> np.ndarray:
    """The same radiograph in 12 bits of 16."""
    return pixels.astype(np.uint16) * 16 + 8


def saved(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


SYSTEMS: tuple[tuple[str, Callable[[np.ndarray, int], bytes]], ...] = (
    (".png", png), (".jpg", jpeg), (".tif", tiff), ("", dicom),
)  # fmt: skip


def coco(films: dict[str, Phantom]) -> bytes:
    """Boxes of all films in the format of COCO; the categories are FDI numbers."""
    images, annotations = [], []
    for number, (name, film) in enumerate(films.items()):
        height, width = film.image.shape
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for (x0, y0, x1, y1), fdi in zip(film.boxes.round(1).tolist(), film.fdi.tolist(), strict=True):
            box = {"id": len(annotations), "image_id": number, "category_id": fdi, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            annotations.append(box)
    for bbox in ([4000, 10, 90, 150], [20, 30, 2, 3]):
        annotations.append({"id": len(annotations), "image_id": 0, "category_id": 11, "bbox": bbox})
    categories = [{"id": 10 * q + n, "name": f"tooth {q}{n}"} for q in (1, 2, 3, 4) for n in range(1, 9)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


def archive(path: str, first: int = 0, count: int = 240) -> None:
    films: dict[str, Phantom] = {}
    files: list[dict[str, bytes]] = [{} for _ in SYSTEMS]
    for number, patient in enumerate(range(first, first + count)):
        film = render_radiograph(SEED, patient)
        system = number * len(SYSTEMS) // count
        suffix, encoded = SYSTEMS[system]
        name = f"p{patient:05d}-0{suffix}"
        films[name] = film
        files[system][name] = encoded(film.image, patient)
    pngs, jpegs, tiffs, dicoms = files
    one, two = list(films.values())[:2]
    warts = {
        f"p{first:05d}-copy.bmp": (saved(one.image, "bmp"), one),
        "p90001-0.jpg": (saved(two.image, "jpeg", quality=70), two),
        "p90002-0.png": (b"", one),
        "p90003-0.jpg": (b"this is text", one),
        "p90004-0.dcm": (dicom(one.image, 0, SECONDARY), one),
        "p90005-0.png": (png(two.image, 0)[:9000], two),
        f"._p{first:05d}-0.png": (b"\0\5\x16\7" + bytes(40), None),
        "Thumbs.db": (b"\xd0\xcf\x11\xe0" + bytes(400), None),
        "price list.txt": (b"crown 800\n", None),
    }
    films |= {name: film for name, (_, film) in warts.items() if film is not None}
    zipped, inner = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as box:
        for name, raw in pngs.items():
            box.writestr(zipfile.ZipInfo(f"export/{name}", (2023, 1, 2, 3, 4, 6)), raw)
    with tarfile.open(fileobj=inner, mode="w:xz") as tar:
        add(tar, {f"2014/{name}": raw for name, raw in jpegs.items()})
    with tarfile.open(path, "w") as tar:
        add(tar, {"clinic/sensor-2023.zip": zipped.getvalue(), "clinic/backup-2014.tar.xz": inner.getvalue()})
        add(tar, {f"clinic/film/{name}": raw for name, raw in tiffs.items()})
        add(tar, {f"clinic/pacs/{name}": raw for name, raw in dicoms.items()})
        add(tar, {f"clinic/desktop/{name}": raw for name, (raw, _) in warts.items()})
        add(tar, {"clinic/teeth.json": coco(films)})


def add(tar: tarfile.TarFile, members: dict[str, bytes]) -> None:
    for name, raw in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(raw)
        tar.addfile(info, io.BytesIO(raw))


if __name__ == "__main__":
    archive(sys.argv[1], *map(int, sys.argv[2:]))
