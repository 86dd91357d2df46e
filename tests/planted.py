"""Secrets, and files that hold them in every place where one can hide: for test_privacy.py.

`HEADER` stands inside files and may show nowhere; `PLACE` stands in the names of files, folders, archives and columns,
which the terminal may show and no file may hold.
"""

import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from pydicom import Dataset, FileMetaDataset, Sequence
from pydicom.dataset import FileDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

HEADER = ("Zebulon", "8675309", "19610723", "/srv/geheim")
PLACE = ("Quasimodo", "4815162342", "1959-02-03")
SAID = " ".join(HEADER)  # a sentence with all of them
KEPT = f"{PLACE[0]}_{PLACE[1]}_{PLACE[2]}"  # a name for files and folders


def pixels(seed, shape=(60, 48)):
    return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def saved(array, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def exif():
    tags = Image.Exif()
    for tag in (
        0x010E,
        0x013B,
        0x0132,
        0x8298,
        0x013C,
        0x9C9B,
        0x9C9C,
    ):  # description, artist, date, copyright, host, XP
        tags[tag] = SAID
    tags.get_ifd(0x8769).update({0x9003: HEADER[2], 0x9286: SAID, 0xA420: HEADER[1], 0xA430: HEADER[0]})
    tags.get_ifd(0x8825).update({0x001D: HEADER[2], 0x001B: SAID})
    return tags


XMP = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{SAID}</dc:creator></x:xmpmeta>'.encode()


def png(seed):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Author", SAID)
    chunks.add_text("Comment", SAID, zip=True)
    chunks.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    chunks.add_itxt("Title", SAID, "de", "Titel")
    chunks.add(b"prVt", SAID.encode())
    return saved(pixels(seed), "png", pnginfo=chunks, exif=exif()) + SAID.encode()  # and after its end


def jpeg(seed):
    raw = saved(
        pixels(seed), "jpeg", exif=exif(), comment=SAID.encode(), xmp=XMP, icc_profile=SAID.encode(), quality=95
    )
    iptc = b"Photoshop 3.0\0" + SAID.encode()
    return raw[:2] + b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc + raw[2:] + SAID.encode()


def tiff(seed):
    tags = {270: SAID, 271: SAID, 285: SAID, 305: SAID, 306: HEADER[2], 315: SAID, 316: SAID, 33432: SAID, 65000: SAID}
    return saved(pixels(seed), "tiff", tiffinfo={**tags, 700: XMP, 33723: SAID.encode()})


def webp(seed):
    return saved(pixels(seed), "webp", lossless=True, exif=exif().tobytes(), xmp=XMP)


def jpeg2000(seed):
    return saved(pixels(seed), "jpeg2000", comment=SAID.encode())


def gif(seed):
    return saved(pixels(seed), "gif", comment=SAID.encode())


def pnm(seed):
    return f"P5\n# {SAID}\n48 60\n255\n".encode() + pixels(seed).tobytes()


def bmp(seed):
    return saved(pixels(seed), "bmp") + SAID.encode()


def dicom(seed, **fields):
    """Secrets in every element that may hold text, in private ones, in the file's meta information, in the preamble."""
    about = FileMetaDataset()
    about.TransferSyntaxUID = ExplicitVRLittleEndian
    about.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.3")
    about.MediaStorageSOPInstanceUID = UID(f"1.2.{HEADER[1]}.{seed}")
    about.SourceApplicationEntityTitle, about.SendingApplicationEntityTitle = HEADER[0], HEADER[0]
    about.PrivateInformationCreatorUID, about.PrivateInformation = UID(f"1.2.{HEADER[1]}"), SAID.encode()
    image = FileDataset(None, {}, file_meta=about, preamble=SAID.encode().ljust(128, b" "))
    image.SOPClassUID, image.SOPInstanceUID = about.MediaStorageSOPClassUID, about.MediaStorageSOPInstanceUID
    image.PatientName, image.PatientID, image.PatientBirthDate = f"{HEADER[0]}^A", f"{HEADER[1]}-{seed}", HEADER[2]
    for name in TEXTS:
        setattr(image, name, SAID[:16])
    for name in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "DateOfLastCalibration"):
        setattr(image, name, HEADER[2])
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "DetectorID"):
        setattr(image, name, f"1.2.{HEADER[1]}")
    image.OtherPatientIDsSequence = Sequence([Dataset()])
    image.OtherPatientIDsSequence[0].PatientID = HEADER[1]
    private = image.private_block(0x0099, HEADER[0], create=True)
    private.add_new(1, "LT", SAID)
    image.Modality, image.Rows, image.Columns = "IO", 60, 48
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7
    image.PixelData = pixels(seed).tobytes()
    for name, value in fields.items():
        setattr(image, name, value)
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue() + SAID.encode()


TEXTS = (
    *("AccessionNumber", "InstitutionName", "InstitutionAddress", "ReferringPhysicianName", "StationName"),
    *("StudyDescription", "SeriesDescription", "PerformingPhysicianName", "OperatorsName", "Manufacturer"),
    *("ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "ProtocolName", "StudyID", "ImageComments"),
    *("PatientComments", "PatientAddress", "AdditionalPatientHistory", "RequestedProcedureDescription"),
    *("DerivationDescription", "DetectorDescription", "AcquisitionDeviceProcessingDescription"),
)

IMAGES = {
    "png": png,
    "jpg": jpeg,
    "tif": tiff,
    "webp": webp,
    "jp2": jpeg2000,
    "gif": gif,
    "pgm": pnm,
    "bmp": bmp,
    "dcm": dicom,
}


def scans():
    """Members of an archive by name: one image of each format with all its metadata, twice damaged, and prose."""
    members = {f"{KEPT}/{KEPT}-{i}.{suffix}": make(i) for i, (suffix, make) in enumerate(IMAGES.items())}
    members[f"{KEPT}/twin-{KEPT}.png"] = png(0)
    members[f"{KEPT}/cut-{KEPT}.png"] = png(90)[:400]
    members[f"{KEPT}/text-{KEPT}.png"] = SAID.encode()
    words = dict.fromkeys(("BodyPartExamined", "ViewPosition", "ImageLaterality", "DetectorType"), HEADER[0].upper())
    members[f"{KEPT}/odd-{KEPT}"] = dicom(91, **words, PatientOrientation=[HEADER[0].upper(), "L"], PixelSpacing=[8, 8])
    members[f"{KEPT}/kind-{KEPT}.dcm"] = dicom(95, Modality=HEADER[0].upper())
    members[f"{KEPT}/gray-{KEPT}.dcm"] = dicom(92, PhotometricInterpretation=HEADER[0].upper())
    members[f"{KEPT}/class-{KEPT}.dcm"] = dicom(93, SOPClassUID=UID(f"1.2.{HEADER[1]}"))
    members[f"{KEPT}/cut-{KEPT}.dcm"] = dicom(94)[:-2000]
    members[f"{KEPT}/{KEPT}.md"] = SAID.encode()
    members[f"._{KEPT}.png"] = b"\0\5\x16\7" + SAID.encode()
    return members


def table(names):
    """A CSV whose other columns hold the secrets, with rows of every mistake. The terminal names the columns."""
    rows = [f"image,x0,y0,x1,y1,fdi,finding,patient,{PLACE[0]},date"]
    rows += [f"{name},4,4,40,50,11,caries,{HEADER[1]}-{n},{SAID},{HEADER[2]}" for n, name in enumerate(names)]
    rows += [f"{names[0]},{HEADER[0]},4,40,50,{HEADER[1]},none,,,", f"{KEPT}-gone.png,4,4,40,50,11,none,{SAID},,"]
    return "\n".join(rows).encode()


def folder_of(tmp, members):
    root = tmp / KEPT
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zip_of(tmp, members):
    with zipfile.ZipFile(tmp / f"{KEPT}.zip", "w") as archive:
        archive.comment = SAID.encode()
        for name, content in members.items():
            info = zipfile.ZipInfo(name, (1995, 5, 5, 5, 5, 5))
            info.comment = SAID.encode()
            info.extra = struct.pack("<HH", 0x6375, len(SAID)) + SAID.encode()
            archive.writestr(info, content)
    return tmp / f"{KEPT}.zip"


def tar_of(tmp, members):
    with tarfile.open(tmp / f"{KEPT}.tar.gz", "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": SAID}) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.uname, info.gname = len(content), SAID[:30], SAID[:30]
            info.pax_headers = {"comment": SAID, "SCHILY.xattr.user.patient": SAID}
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo(f"{KEPT}-link")
        link.type, link.linkname = tarfile.SYMTYPE, HEADER[3]
        tar.addfile(link)
    return tmp / f"{KEPT}.tar.gz"


def nested_of(tmp, members):
    """A folder of a tar of a zip, and beside it archives that cannot be opened."""
    inner = zip_of(tmp, members)
    outer = {inner.name: inner.read_bytes(), f"cut-{inner.name}": inner.read_bytes()[:-90], f"{KEPT}.7z": SAID.encode()}
    tar = tar_of(tmp, outer)
    inner.unlink()
    return folder_of(tmp, {tar.name: tar.read_bytes(), f"cut-{tar.name}": tar.read_bytes()[:5000]})


CONTAINERS = {"folder": folder_of, "zip": zip_of, "tar": tar_of, "nested": nested_of}


def annotated(members):
    return {**members, f"{KEPT}/boxes.csv": table([Path(name).name for name in members])}


def coco():
    """Secrets in every field that no crop needs, and in entries with every mistake."""
    image = {"id": 1, "file_name": f"{KEPT}/{KEPT}-0.png", "width": 48, "height": 60, "date_captured": HEADER[2]}
    image |= {"coco_url": SAID, "flickr_url": SAID, "license": 1, "patient": {"name": SAID}}
    box = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [4, 4, 36, 46], "iscrowd": 0, "area": 1}
    box |= {"caption": SAID, "attributes": {"patient": SAID, HEADER[0]: 1}, "segmentation": [[4, 4, 40, 4, 40, 50]]}
    wrong = [
        box | {"id": 8, "image_id": 99},
        box | {"id": SAID, "category_id": 99},
        box | {"id": 10, "bbox": [SAID, 4, 36, 46]},
        box | {"id": 11, "bbox": SAID},
        box | {"id": 12, "image_id": SAID},
    ]
    whole = {
        "info": {"contributor": SAID, "description": SAID, "date_created": HEADER[2], "url": SAID},
        "licenses": [{"id": 1, "name": SAID, "url": SAID}],
        "images": [image, {"id": 2, "file_name": f"/{KEPT}/gone.png"}],
        "annotations": [box, *wrong],
        "categories": [{"id": 1, "name": "11", "supercategory": "tooth", "keypoints": [SAID]}],
    }
    return {f"{KEPT}/{KEPT}.json": json.dumps(whole).encode()}


def voc():
    objects = "".join(
        f"<object><name>{name}</name><pose>{SAID}</pose><bndbox>{corners}</bndbox><note>{SAID}</note></object>"
        for name, corners in (
            ("11", "<xmin>5</xmin><ymin>5</ymin><xmax>40</xmax><ymax>50</ymax>"),
            ("12", f"<xmin>{SAID}</xmin><ymin>5</ymin><xmax>40</xmax><ymax>50</ymax>"),
        )
    )
    source = f"<source><database>{SAID}</database><annotation>{SAID}</annotation></source><owner>{SAID}</owner>"
    text = f"<annotation><!-- {SAID} --><folder>{SAID}</folder><filename>{KEPT}-0.png</filename><path>{SAID}</path>"
    return {f"{KEPT}/{KEPT}-0.xml": f"{text}{source}{objects}</annotation>".encode()}


def yolo():
    rows = f"0 0.5 0.5 0.6 0.6\n{SAID}\n0 {HEADER[1]} 0.5 0.5 0.5\n1 0.5 0.5 0 0.5\n"
    listed = f"# {SAID}\npath: {HEADER[3]}\ntrain: {SAID}\nnames: ['11']\ndownload: {SAID}\n"
    return {f"{KEPT}/{KEPT}-0.txt": rows.encode(), f"{KEPT}/data.yaml": listed.encode()}


def labelme():
    shape = {"label": "11", "shape_type": "rectangle", "points": [[4, 4], [40, 50]], "description": SAID}
    shape |= {"flags": {SAID: True}, "attributes": {"patient": SAID, "finding": SAID}, "group_id": HEADER[1]}
    shapes = [shape, shape | {"label": SAID, "points": [[SAID, 4], [40, 50]]}, shape | {"shape_type": "line"}]
    whole = {"version": SAID, "flags": {SAID: True}, "shapes": shapes, "imagePath": f"C:\\{HEADER[0]}\\{KEPT}-0.png"}
    whole |= {"imageData": SAID, "imageWidth": 48, "imageHeight": 60}
    return {f"{KEPT}/{KEPT}-0.json": json.dumps(whole).encode()}


def cvat():
    shapes = f'<box label="11" xtl="4" ytl="4" xbr="40" ybr="50" source="{SAID}"><attribute name="finding">{SAID}'
    shapes += (
        f'</attribute><attribute name="{PLACE[0]}">{SAID}</attribute></box><polygon label="{SAID}" points="{SAID}"/>'
    )
    image = f'<image id="0" name="{KEPT}/{KEPT}-0.png" width="48" height="60">{shapes}</image>'
    gone = f'<image id="1" name="{HEADER[0]}.png" width="48" height="60">{shapes}</image>'
    owner = f"<meta><task><owner><username>{SAID}</username></owner></task></meta>"
    return {f"{KEPT}/{KEPT}.xml": f"<annotations><version>1.1</version>{owner}{image}{gone}</annotations>".encode()}


def label_studio():
    value = {"x": 8, "y": 7, "width": 75, "height": 76, "rotation": 0, "rectanglelabels": ["11", SAID]}
    result = {"id": SAID, "type": "rectanglelabels", "value": value, "original_width": 48, "original_height": 60}
    answer = {"id": SAID, "type": "textarea", "from_name": "finding", "value": {"text": [SAID]}}
    wrong = [result | {"value": value | {"x": SAID}}, result | {"value": value | {"rotation": SAID}}, {"value": SAID}]
    annotation = {"completed_by": SAID, "result": [result, answer, *wrong]}
    data = {"image": f"/data/upload/1/ab12cd34-{KEPT}-0.png", "patient": SAID}
    tasks = [{"id": 1, "data": data, "annotations": [annotation], "meta": SAID}]
    return {f"{KEPT}/{KEPT}.json": json.dumps(tasks).encode()}


def via():
    rect = {"name": "rect", "x": 4, "y": 4, "width": 36, "height": 46}
    regions = [
        {"shape_attributes": shape, "region_attributes": {"label": "11", "finding": SAID, "patient": SAID}}
        for shape in (rect, rect | {"x": SAID}, {"name": SAID}, SAID)
    ]
    image = {"filename": f"{KEPT}-0.png", "size": 9, "regions": regions, "file_attributes": {"caption": SAID}}
    return {f"{KEPT}/{KEPT}.json": json.dumps({f"{KEPT}-0.png9": image, SAID: SAID}).encode()}


def supervisely():
    box = {"classTitle": "11", "geometryType": "rectangle", "points": {"exterior": [[4, 4], [40, 50]]}}
    box |= {"labelerLogin": SAID, "description": SAID, "tags": [{"name": "finding", "value": SAID}, {"name": SAID}]}
    objects = [box, box | {"points": SAID}, box | {"geometryType": SAID}, box | {"classTitle": SAID, "points": {}}]
    whole = {"description": SAID, "tags": [{"name": SAID}], "size": {"width": 48, "height": 60}, "objects": objects}
    return {f"{KEPT}/{KEPT}-0.png.json": json.dumps(whole).encode()}


def lines():
    return {f"{KEPT}/{KEPT}-0.txt": f"4 4 40 50\n{SAID}\n5 5 {HEADER[0]} 50\n".encode()}


def masks():
    """The mask is a file with metadata of its own, and its name holds the secret."""
    drawn = np.zeros((60, 48), np.uint8)
    drawn[10:50, 10:40] = 255
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Author", SAID)
    return {f"{KEPT}/masks/{KEPT}-0.png": saved(drawn, "png", pnginfo=chunks, exif=exif())}
