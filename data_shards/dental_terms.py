"""The words of dental labels: a text of them alone says what is on a tooth, so it may enter a shard unasked."""

import re

_SIDES = """
    upper lower left right maxilla maxillary mandible mandibular anterior posterior mesial distal buccal lingual
    palatal labial vestibular occlusal incisal proximal interproximal apical cervical coronal radicular lateral
    central medial bilateral unilateral inferior superior marginal margin first second third quadrant sextant arch jaw
    side row region area site position angle
"""
_ANATOMY = """
    tooth teeth dentition incisor canine cuspid premolar bicuspid molar wisdom permanent primary deciduous milk
    temporary enamel dentin dentine pulp pulpal chamber crown neck root rooted canal apex cusp bone alveolar alveolus
    crest crestal gingiva gingival gum periodontium periodontal periodontally ligament lamina dura sinus antrum
    mucosal mental nasal septum fossa palate hyoid zygomatic germ bud follicle foramen nerve condyle ramus canaliculus
    tmj cej pdl tissue soft hard
"""
_FINDINGS = """
    caries carious decay decayed cavity cavities cavitated cavitation lesion defect finding disease pathology
    pathologic pathological anomaly abnormality abnormal condition demineralization demineralisation demineralized
    remineralized radiolucency radiolucent radiopacity radiopaque lucency opacity shadow periapical periradicular
    apicalis periodontitis gingivitis pulpitis necrosis necrotic abscess cyst granuloma tumor tumour odontoma
    ameloblastoma osteitis osteomyelitis osteoporosis sclerosis sclerotic inflammation infection infected resorption
    resorbed hypercementosis ankylosis fracture fractured broken crack cracked split trauma luxation avulsion
    attrition abrasion abfraction erosion wear worn furcation calculus tartar plaque pocket recession loss lost
    horizontal vertical angular widened widening impacted impaction unerupted erupted erupting eruption retained
    retention embedded supernumerary mesiodens ectopic rotated rotation tilted crowded crowding diastema spacing
    overlap agenesis hypodontia missing absent extracted extraction edentulous taurodontism dilaceration dilacerated
    fusion fused gemination microdontia macrodontia hypoplasia hypomineralization fluorosis discoloration calcified
    calcification obliteration piece stump fragment remnant remains malaligned malalignment malposition malpositioned
    supra dentigerous keratocyst odontogenic perio peri implantitis involvement mesioangular distoangular inverted
    dens dente ghost open thickening polyp osseous dysplasia fibrous exostosis torus pearl concrescence hyperdontia
    oligodontia anodontia transposition infraocclusion submerged overerupted overeruption extruded extrusion drifted
    pit fissure spot hole gap contact
"""
_TREATMENT = """
    treated treatment untreated therapy filling filled fill restored restoration restorative amalgam composite resin
    ionomer ceramic metal metallic zirconia porcelain acrylic cement base liner inlay onlay overlay veneer bridge
    pontic abutment prosthesis prostheses tad plating stainless provisional former stent prosthetic prosthodontic
    denture removable fixed partial full complete implant screw post core pin endodontic endodontics endo
    endodontically rct obturated obturation overfilled underfilled overhang overhanging gutta percha sealer sealant
    apicoectomy pulpotomy pulpectomy sealed orthodontic bracket band wire brace retainer appliance plate splint space
    maintainer device artifact artefact marker
"""
_DEGREES = """
    no non none not without with and or of in on the to at by for yes true false present negative positive normal
    sound healthy intact clean background other others unknown uncertain undefined unlabeled unlabelled suspected
    suspicious possible probable definite initial incipient early moderate advanced late severe mild deep superficial
    shallow extensive small medium large low high active inactive arrested acute chronic recurrent secondary residual
    stage grade degree class type level score category code index kind i ii iii iv v vi icdas pai fdi iso uni external
    internal old new good poor adequate inadequate defective satisfactory quality multiple single double number object
    box label whole image
"""
_PRACTICE = """
    dental oral radiograph panoramic panorama opg bitewing intraoral extraoral cbct xray
"""
_BESIDE = "gold silver steel white brown black dark"
"""Surnames as well, so they say something of a tooth beside other words only."""
WORDS = frozenset(" ".join((_SIDES, _ANATOMY, _FINDINGS, _TREATMENT, _DEGREES, _PRACTICE)).split())
"""In lower case and the singular."""
BESIDE_OTHERS = frozenset(_BESIDE.split())

_NUMBER = re.compile(
    r"""(?<![A-Za-z\d.])(?:
        (?:\d{1,3}\s?-\s?)?\d{1,3}(?:[.,]\d{1,2})?\s?%  # a share, or from one to another
        | 0[.,]\d{1,2}
        | (?:U[RL]|L[RL])[1-8] | Q[1-4]  # Palmer's teeth, quadrants
        | [DE][1-4] | K0\d(?:\.\d)?  # depths of caries, ICD-10
        | [1-8](?:st|nd|rd|th)
        | [Tt]?\d{1,2}(?:[.,]\d)?
    )(?![A-Za-z\d]|[.,]\d)
    | (?<![\d.])\d{1,2}(?:\.\d)?(?![\d.])""",
    re.VERBOSE,
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_BETWEEN = re.compile(r"[\s_\-/+&,;:.()\[\]#]*")


def is_dental(text: str) -> bool:
    """Whether a text is made of `WORDS` (`RootCanal`, `root_canal`, `Deep Caries`) and at most one number below 100.

    Shares and the codes of teeth and of caries count as that number. Two numbers could be a date, and longer ones a
    patient's. A word that is not in the list could be a name.
    """
    rest, numbers = _NUMBER.subn(" ", text)
    words = [word.lower() for word in _WORD.findall(rest)]
    others = _BETWEEN.fullmatch(_WORD.sub("", rest))
    surname = len(words) == 1 and words[0] in BESIDE_OTHERS
    return numbers <= 1 and others is not None and not surname and all(map(_known, words))


def _known(word: str) -> bool:
    singular = (word, word.removesuffix("s"), word.removesuffix("es"))
    return any(form in WORDS or form in BESIDE_OTHERS for form in singular)
