"""Ids of slides and cases: what is compared, and what is only another way to write the same id."""

import ast
import csv
import re
import unicodedata
from collections.abc import Collection, Iterable
from io import StringIO
from shlex import quote

_ENDINGS = r"\.(?:svs|tiff?|ndpi|mrxs|scn|vms|vmu|bif|qptiff|czi|dcm|isyntax|sdpc|kfb|tmap|ome|jpe?g|png|h5|hdf5|pt|pth|npz|npy)"
_SLIDE_FILE = re.compile(rf"\s*{_ENDINGS}$", re.I)
_BETWEEN_FILES = re.compile(rf"({_ENDINGS})\s*[+&/\s]\s*(?=\S)", re.I)
_TCGA = re.compile(r"TCGA-\w\w-\w{4}(?=-|$)")
# GDC's codes: sample type, then how the piece was made and cut.
_TCGA_SLIDE = re.compile(r"TCGA-\w\w-\w{4}-(\d\d)\w?-\w\w-(DX|TS|BS|MS)", re.I)
_SAMPLE = {"01": "primary tumour", "02": "recurrent tumour", "06": "metastasis", "10": "normal blood", "11": "normal tissue"}


def text(id: str) -> str:
    """An id as everything is compared by: without blanks around it, in one Unicode form (NFC), and 12.0 as 12."""
    return re.sub(r"^(\d+)\.0+$", r"\1", unicodedata.normalize("NFC", str(id)).strip())


def slide(id: str) -> str:
    """The id of a slide: without folder and the extensions of slide and feature files, too.

    TCGA's own ids have dots in them, so no other extension is taken away.
    """
    id = re.split(r"[/\\]", text(id).rstrip("/\\"))[-1]
    while (shorter := _SLIDE_FILE.sub("", id)) != id:
        id = shorter
    return text(id)


def meant(id: str, known: Collection[str]) -> str:
    """The id that somebody means by this one: itself, else without folder and extension.

    A slash alone is no folder's where the known ids have one, too.
    """
    id = text(id)
    own = "/" in id and id[0] != "/" and not _SLIDE_FILE.search(id) and any("/" in one for one in known)
    return id if own or id in known else slide(id)


def slides(cell: str) -> list[str]:
    """The slides that a cell names, as it names them: one, or a list with `;`, `|`, commas or line breaks between them.

    A comma may belong to an id. It ends one where a file name ends before it, or where all parts are built alike: `S1, S2`.
    """
    cell = cell.strip()
    if cell[:1] in "[(" and cell[-1:] in "])":
        try:
            listed = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            listed = None
        if isinstance(listed, list | tuple) and all(isinstance(one, str | int) for one in listed):
            return [str(one) for one in listed if str(one).strip()]
    for mark in (r"[;|\r\n]+", ","):
        parts = [part.strip() for part in re.split(mark, cell) if part.strip()]
        if len(parts) > 1 and (mark != "," or _list(parts)):
            return [one for part in parts for one in slides(part)]
    parts = _BETWEEN_FILES.sub("\\1\n", cell).split("\n")  # a folder that ends like a file has files of another kind in it
    endings = {ending[0].lower() if (ending := _SLIDE_FILE.search(part)) else "" for part in parts}
    return parts if len(parts) > 1 and len(endings) == 1 else [cell]


def _list(parts: list[str]) -> bool:
    return any(_SLIDE_FILE.search(part) for part in parts[:-1]) or len(set(map(shape, map(slide, parts)))) == 1


def shape(id: str) -> str:
    """What an id is built like: letters as a, digits as 9."""
    return re.sub(r"\d+", "9", re.sub(r"[^\W\d_]+", "a", id))


def spelling(id: str) -> str:
    """The same for ids that differ in case only."""
    return unicodedata.normalize("NFKC", id).casefold()


def shown(id: str) -> str:
    """An id in quotes, with escapes where two that differ could look alike."""
    return ascii(id) if unicodedata.normalize("NFC", id) != id else repr(id)


def patient(slide: str) -> str | None:
    """The patient whom a TCGA barcode names; None of other ids."""
    tcga = _TCGA.match(slide)
    return tcga[0] if tcga else None


def tissue(slide: str) -> str | None:
    """What a TCGA slide shows: kind of tissue, and diagnostic or frozen section; None of other ids."""
    barcode = _TCGA_SLIDE.match(slide)
    if barcode is None:
        return None
    section = "diagnostic slides" if barcode[2].upper() == "DX" else "frozen sections"
    return f"{section} ({barcode[2].upper()}) of {_SAMPLE.get(barcode[1], 'sample type')} ({barcode[1]})"


def kind_of(slide: str, case: str) -> str:
    """What the name of a slide says beyond the case: tissue and section of TCGA's barcodes, else its ending without numbers."""
    ending = slide.removeprefix(case).strip("-_. ")
    words = re.search(r"[^\W\d_]{2}", ending)
    return tissue(slide) or (f"ending in {ending}" if words else "without an ending in words")


def pasted(ids: Iterable[str]) -> str:
    """Ids as a shell and `--exclude` take them: with commas between them, in quotes where an id needs it."""
    line = StringIO()
    csv.writer(line, lineterminator="").writerow(ids)
    return quote(line.getvalue())


def listed(line: str) -> list[str]:
    """The ids of a line that :func:`pasted` wrote, or that somebody typed."""
    return [id.strip() for row in csv.reader([line], skipinitialspace=True) for id in row if id.strip()]
