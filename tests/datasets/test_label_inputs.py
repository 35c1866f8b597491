"""Label tables as they come: each is read rightly, or told in one line that names file, row and remedy."""

import json
import re
import shlex
import unicodedata
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milbench import datasets
from milbench.datasets.files import columns, labels
from milbench.delimited import Delimited
from tests.builders import folders
from tests.builders.command import milbench

Kind = namedtuple("Kind", "table words code says")
KINDS = {}
LABELLED = "slide_id,case_id,label\nS1,P1,A\nS2,P2,B\nS3,P3,A\nS4,P4,B\n"
SURVIVAL = ("--task", "survival")
TCGA = [
    "TCGA-AA-0001-01Z-00-DX1.AAAA",
    "TCGA-AA-0001-01Z-00-DX2.BBBB",
    "TCGA-AA-0002-01Z-00-DX1.CCCC",
    "TCGA-AA-0003-01Z-00-DX1.DDDD",
]
NFC = "M\u00fcller"


def kind(name, table, *words, code=0, says):
    """An input: its table, what is typed beside it, the exit code, and what is to be told (a pattern)."""
    KINDS[name] = Kind(table, words, code, says)


def rows(header, *cells):
    return "\n".join([header, *cells]) + "\n"


# A cell that names several slides
FOLLOWED = "case_id,slides,survival_months,event"
for name, cell in {
    "semicolons": "a1.pt;a2.pt", "bars": "a1.svs | a2.svs", "commas": '"a1.pt, a2.pt"', "folders": "/x/y/a1.pt;/x/z/a2.pt",
    "no endings": '"a1,a2"', "a list of Python": "\"['a1.svs', 'a2.svs']\"", "blanks": "a1.svs a2.svs", "a plus": "a1.svs+a2.svs", "a slash": "/x/a1.svs / /y/a2.svs", "lines": '"a1.svs\na2.svs"',
    "a mark at the end": "a1.pt;a2.pt;",
}.items():  # fmt: skip
    kind(
        f"several slides: {name}",
        rows(FOLLOWED, f"P1,{cell},10,1", "P2,b1.pt,20,0"),
        *SURVIVAL,
        says="2 cases(.|\n)*censored: 1 · .*events: 1",
    )
kind(
    "a comma in an id is none between two",
    rows("slide_id,label", '"H&E 5%, block #1",A', '"H&E 6%, block #2",B'),
    says="2 slides of 2 cases",
)

kind("an open quote", '"slide_id","label"\n"S1","A\n"S2","B"\n', code=2, says="line 3: .*is there a quote without its other")
kind("ASCII in any encoding", LABELLED, "--encoding", "utf-16-le", says="4 slides of 4 cases")
kind(
    "UTF-8 in another encoding",
    LABELLED.replace("A\n", f"{NFC}\n"),
    "--encoding", "ascii",
    code=2,
    says="it is UTF-8: give it in a command of its own, without --encoding",
)  # fmt: skip

kind(
    "survival without its task",
    rows("case_id,survival_months,event", "P1,10,1", "P2,20,0"),
    code=2,
    says="no column of labels .*survival_months and event look like survival, which is read with --task survival",
)

# Ids
kind(
    "slashes in ids of patients",
    rows("patient_id,slide_id,label", "1000/20,S1,A", "1001/20,S2,B", "1002/20,S3,A"),
    says="3 slides of 3 cases",
)
for name, one, other in (
    ("two endings", "a.svs", "a.ndpi"), ("two folders", "/x/a.svs", "/y/a.svs"), ("case", "Slide-1", "slide-1"), ("an ending", "S1", "S1.svs"),
    ("blanks", "S1", '"S1 "'), ("numbers", "12", "12.0"), ("Unicode forms", NFC, unicodedata.normalize("NFD", NFC)),
):  # fmt: skip
    kind(
        f"the same slide by {name}",
        rows("slide_id,label", f"{one},A", "x,B", f"{other},A"),
        code=2,
        says=r"t\.csv, row 4: slide '.*' and '.*' in row 2 are the same id",
    )
for name, one, other in (("case", "p1", "P1"), ("blanks", "P1", '"P1 "'), ("numbers", "7", "7.0")):
    kind(
        f"the same patient by {name}",
        rows("slide_id,case_id,label", f"a,{one},A", f"b,{other},A", "c,P2,B"),
        code=2,
        says="row 3: case '.*' and '.*' in row 2 are the same id",
    )

# Which column is the id
kind("an index without a name", rows(",slide_id,label", "0,S1,A", "1,S2,B"), says="slide = slide_id, label = label")
kind(
    "an index saved twice",
    rows("Unnamed: 0,Unnamed: 0.1,case_id,slide_id,label", "0,0,P1,S1,A", "1,1,P2,S2,B"),
    says="slide = slide_id, case = case_id",
)
kind("ids in a column without a name", rows(",label", "S1,A", "S2,B"), says="slide = column 1, label = label")
kind("numbers in a column without a name", rows(",label", "0,A", "1,B"), code=2, says="no column of slides or cases")
kind("OS as a time", rows("case_id,OS,status", "P1,10.5,1", "P2,3.2,0"), *SURVIVAL, says="time = OS, event = status")

# Cases that are none
kind(
    "cases repeat slides of TCGA",
    rows("case_id,slide_id,label", *(f"{s},{s},{'AABB'[i]}" for i, s in enumerate(TCGA))),
    says="4 slides of 3 cases(.|\n)*column case_id repeats the ids of slides; the patient is taken from 4 barcodes",
)
kind(
    "cases are samples of TCGA",
    rows("case_id,slide_id,label", *(f"c{i},{s},{'AABB'[i]}" for i, s in enumerate(TCGA))),
    says=r"4 slides of 3 cases(.|\n)*gives slides of one TCGA patient several cases \(TCGA-AA-0001\)",
)
kind(
    "one case for patients of TCGA",
    rows("case_id,slide_id,label", *(f"c,{s},{'AABB'[i]}" for i, s in enumerate(TCGA))),
    says="warning.*several TCGA patients one case: c; say which column names the patients",
)
kind(
    "samples of TCGA for cases",
    rows("case_id,label", "TCGA-AA-0001-01,A", "TCGA-AA-0001-06,B", "TCGA-AA-0002-01,A"),
    says="warning.*2 cases that are samples of TCGA patients with several.*TCGA-AA-0001-01, TCGA-AA-0001-06",
)
kind(
    "cases repeat other slides",
    LABELLED.replace("P", "S"),
    says="warning.*column case_id repeats the ids of slides, so that nobody knows which are of one patient",
)
kind(
    "cases within patients",
    rows("slide_id,case_id,patient_id,label", "a,c1,P1,A", "b,c2,P1,B", "c,c3,P2,A"),
    says="warning.*column patient_id puts cases of column case_id together: one patient\\?: P1",
)
kind(
    "a column of cases that is left to none",
    LABELLED,
    "--columns",
    "case=",
    says=r"\(slide = slide_id, label = label\): 4 slides of 4 cases",
)

# Columns that contradict each other
kind(
    "event and censorship",
    rows("case_id,time,event,censorship", "P1,1,1,0", "P2,2,0,0"),
    *SURVIVAL,
    code=2,
    says="row 3: event '0' means no event, censorship '0' means an event.*--columns event=event",
)
kind(
    "event and words",
    rows("case_id,time,event,vital_status", "P1,1,1,Dead", "P2,2,1,Alive"),
    *SURVIVAL,
    code=2,
    says="row 3: event '1' means an event, vital_status 'Alive' means no event",
)
kind(
    "flag and word",
    rows("case_id,time,event", "P1,1,1:LIVING", "P2,2,0:LIVING"),
    *SURVIVAL,
    code=2,
    says="row 2: event '1:LIVING' means no event and an event",
)
kind(
    "event and censorship, asked",
    rows("case_id,time,event,censorship", "P1,1,1,0", "P2,2,0,0"),
    *SURVIVAL,
    "--columns",
    "event=event",
    says="event = event",
)
kind(
    "event and censorship that agree",
    rows("case_id,time,event,censorship", "P1,1,1,0", "P2,2,0,1"),
    *SURVIVAL,
    says="censorship = censorship",
)
kind(
    "a word in a column of censoring",
    rows("case_id,time,censorship", "P1,1,dead", "P2,2,alive"),
    *SURVIVAL,
    says="censored: 1 · .*events: 1",
)
kind(
    "two columns of labels",
    rows("slide_id,label,subtype", "a,X,X", "b,Y,X", "c,Y,Y"),
    code=2,
    says="row 3: label is 'Y' and subtype is 'X', which do not go together.*--columns label=label",
)
kind(
    "names and numbers of labels",
    rows("slide_id,label,subtype", "a,0,X", "b,1,Y", "c,0,X", "d,1,X"),
    code=2,
    says="row 5: label is '1' and subtype is 'X'",
)
kind("labels that divide labels", rows("slide_id,label,subtype", "a,0,X", "b,1,Y", "c,1,Z"), says="0 0: 1 · 1 1: 2")
kind(
    "two columns of one name",
    rows("slide_id,label,label", "a,X,X", "b,Y,X"),
    code=2,
    says="row 3: label is 'Y' and label \\(2\\) is 'X'",
)

kind(
    "months and days",
    rows("case_id,survival_months,survival_days,event", "P1,10,304,1", "P2,3,900,0"),
    *SURVIVAL,
    code=2,
    says="row 3: survival_months is 3 and survival_days is 900, which are not the same time.*--columns time=survival_months",
)
kind(
    "two spellings of one name",
    rows("slide_id,label,Label", "a,X,X", "b,Y,X"),
    code=2,
    says="row 3: label is 'Y' and Label is 'X'",
)

# Leaving out
kind(
    "nobody of that name",
    LABELLED,
    "--exclude",
    "S11,S2",
    code=1,
    says="ERROR.*nobody is called S11 \\(did you mean .*S1.*\\), who is to be left out",
)
kind("no such file", LABELLED, "--exclude", "gone.txt", code=2, says="--exclude: there is no file gone.txt")
kind(
    "an id with a comma, bare",
    rows("slide_id,label", '"x #1, y",A', "S2,B", "S3,A"),
    "--exclude",
    "x #1, y",
    code=1,
    says="nobody is called x #1 .*those with a comma stand in quotes",
)
kind(
    "an id with a comma, in quotes",
    rows("slide_id,label", '"x #1, y",A', "S2,B", "S3,A"),
    "--exclude",
    '"x #1, y"',
    says="1 slides or cases left out by choice: x #1, y",
)
kind(
    "bad rows are left out first",
    LABELLED + "S5,P5,\nS6,P6,\n",
    "--exclude",
    "S5,P6",
    says="4 slides of 4 cases(.|\n)*left out by choice: P6, S5",
)
kind(
    "incomplete rows",
    LABELLED + "S5,P5,\nS6,P6,N/A\n",
    "--skip-incomplete",
    says="4 slides of 4 cases(.|\n)*2 slides left out: incomplete: S5, S6",
)
kind(
    "all bad rows at once",
    LABELLED + "".join(f"T{i},Q{i},\n" for i in range(25)),
    code=2,
    says=r"t\.csv: 25 rows cannot be used: row 6: T0 has no label; (.*; ){9}and 15 more.*--skip-incomplete; all are in .*mine-rows\.txt",
)
kind("everybody is left out", LABELLED, "--exclude", "S1,S2,S3,S4", code=1, says="all of its rows are left out")

kind(
    "a patient with a slash is no slide of that name",
    rows("case_id,slide_id,label", "1000/S1,S0,A", "1001/S2,S1,B", "1002/S2,S2,A"),
    "--exclude", "1000/S1",
    says="2 slides of 2 cases",
)  # fmt: skip

# Rows
kind(
    "a comma without quotes",
    rows("slide_id,label", "S1,Carcinoma, ductal", "S2,Benign, none"),
    code=2,
    says=r"t\.csv, row 2: 3 fields, the header has 2 .*S1, Carcinoma, ductal; put cells that hold a separator into quotes",
)
kind(
    "a comma without quotes further down",
    rows("slide_id,label", "S1,Benign", "S2,Carcinoma, ductal"),
    code=2,
    says=r"row 3: 3 fields, the header has 2",
)
kind("separators at the end", rows("slide_id,label,,", "S1,A,,", "S2,B", "S3,A,,,"), says="3 slides of 3 cases")
kind("separators at the end of rows only", rows("slide_id,label", "S1,A,", "S2,B,,"), says="2 slides of 2 cases")
kind(
    "a row that is too short",
    rows("slide_id,case_id,label", "S1,P1,A", "S2,B"),
    code=2,
    says="row 3: 1 row with fewer fields than the header",
)
kind("empty rows", rows("slide_id,label", "S1,A", "", ",", "S2,B", ","), says="2 slides of 2 cases")

# Words for missing, and labels that are alike
for word in ("N/A", "#N/A", "[Not Available]", "Unknown", "nan", "-", "<NA>", "not reported", "'--"):
    kind(
        f"missing: {word}",
        LABELLED + f"S5,P5,{word}\n",
        code=2,
        says="row 6: S5 has no label .*fill it in or remove the row, or leave such rows out with --skip-incomplete",
    )
kind("a word for missing that is a class", LABELLED + "S5,P5,-\n", "--classes", "A,B,neg=-", says="0 A: 2 · 1 B: 2 · 2 neg .*: 1")
kind(
    "a missing time",
    rows("case_id,time,event", "P1,1,1", "P2,[Not Available],0"),
    *SURVIVAL,
    code=2,
    says="row 3: case P2 has no time",
)
kind(
    "labels alike",
    rows("slide_id,label", "a,LUAD", "b,luad", "c,LUSC", "d,L USC"),
    says="warning.*differ in case or blanks only .*L USC, LUSC; LUAD, luad; if they are one: --classes 'L USC=L USC\\+LUSC,LUAD=LUAD\\+luad'",
)

# A header
kind(
    "no header",
    rows("tumor_020,1", "normal_052,0", "tumor_078,1", "normal_001,0"),
    code=2,
    says="no header, as its first row looks like the others .*--no-header --columns slide=1,label=2",
)
kind(
    "no header, read",
    rows("tumor_020,1", "normal_052,0", "tumor_078,1"),
    "--no-header",
    "--columns",
    "slide=1,label=2",
    says="3 slides of 3 cases",
)
kind(
    "numbers of columns with a header",
    LABELLED,
    "--columns",
    "slide=1",
    code=2,
    says="unknown column.*columns have numbers with --no-header",
)

# Downloads
kind(
    "cBioPortal's file",
    rows(
        "#Patient\tStatus\tMonths",
        "#STRING\tSTRING\tNUMBER",
        "#1\t1\t1",
        "PATIENT_ID\tOS_STATUS\tOS_MONTHS",
        "P1\t1:DECEASED\t10.2",
        "P2\t0:LIVING\t20",
    ),
    *SURVIVAL,
    says="censored: 1 · .*events: 1",
)
kind(
    "cBioPortal's web page",
    rows(
        "Study ID\tPatient ID\tSample ID\tOverall Survival (Months)\tOverall Survival Status",
        "s\tP1\tP1-01\t10\t1:DECEASED",
        "s\tP2\tP2-01\t20\t0:LIVING",
        "s\tP3\tP3-01\t\t0:LIVING",
    ),
    *SURVIVAL,
    "--skip-incomplete",
    says="2 cases(.|\n)*1 case left out: incomplete: P3",
)
kind(
    "TCGA-CDR",
    rows(
        ",bcr_patient_barcode,type,vital_status,OS,OS.time",
        "1,TCGA-AA-0001,BRCA,Dead,1,10",
        "2,TCGA-AA-0002,BRCA,Alive,0,#N/A",
        "3,TCGA-AA-0003,BRCA,Alive,0,20",
    ),
    *SURVIVAL,
    "--skip-incomplete",
    says="2 cases(.|\n)*left out: incomplete: TCGA-AA-0002",
)

# Classes
HER2 = rows("slide_id,label", "S1,HER2+", "S2,HER2-", 'S3,"ER+, PR-"', "S4,=x", 'S5,"a ""b"""')
kind(
    "marks in labels, bare",
    HER2,
    "--classes",
    "pos=HER2+,neg=HER2-",
    code=2,
    says="stands in quotes: --classes 'A=x\\+y,B=\"HER2\\+\"'",
)
kind(
    "marks in labels, in quotes",
    HER2,
    "--classes",
    'pos="HER2+"+"ER+, PR-",neg=HER2-+"=x"+"a ""b"""',
    says=r"0 pos \(HER2\+, ER\+, PR-\): 2 · 1 neg .*: 3",
)
kind(
    "marks in labels, forgotten",
    HER2,
    "--classes",
    'pos="HER2+",neg=HER2-',
    code=2,
    says='no class for .*in quotes: --classes .*"ER\\+, PR-"',
)

# Text
kind("UTF-16 with its mark", LABELLED.encode("utf-16"), says="4 slides of 4 cases")
kind("UTF-16 without it", LABELLED.encode("utf-16-le"), code=2, says="looks like UTF-16: give --encoding utf-16-le")
kind("UTF-16 by name", LABELLED.encode("utf-16-be"), "--encoding", "utf-16-be", says="4 slides of 4 cases")
GBK = LABELLED.replace("A\n", "\u80bf\u7624\n").encode("gbk")
kind("GBK", GBK, code=2, says="line 2 is not UTF-8.*looks like GBK: give --encoding gbk")
kind("GBK by name", GBK, "--encoding", "gbk", says="\u80bf\u7624: 2")
kind("an unknown encoding", LABELLED, "--encoding", "klingon", code=2, says="unknown encoding 'klingon'")
kind("a workbook", b"PK\x03\x04rest", code=2, says="a workbook .*save the sheet as CSV")
kind(
    "tabs, and commas in the header",
    rows("slide_id\tlabel, final", "a\tX", "b\tY"),
    "--columns",
    "label=label, final",
    code=2,
    says='is not of the form role=column; a column with a comma: role="a, b"',
)
kind(
    "tabs, and commas in the header, in quotes",
    rows("slide_id\tlabel, final", "a\tX", "b\tY"),
    "--columns",
    'label="label, final"',
    says="label = label, final",
)
kind(
    "semicolons, and commas in the header",
    rows("slide_id;label;age, years", "a;X;1,5", "b;Y;2,5"),
    says="slide = slide_id, label = label",
)
kind("commas for decimals", rows("case_id;time;event", "a;10,5;1", "b;3,25;0"), *SURVIVAL, says="2 cases")


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """The data folder of the test."""
    monkeypatch.setenv("MILBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


@pytest.mark.parametrize("name", KINDS)
def test_a_table_is_read_rightly_or_told_in_one_line(name, tmp_path, data):
    given = KINDS[name]
    raw = given.table if isinstance(given.table, bytes) else given.table.encode()
    (tmp_path / "t.csv").write_bytes(raw)
    told = milbench("data", "add", "mine", "--labels", "t.csv", *given.words, code=given.code)
    assert re.search(given.says, told), told
    assert (data / "mine.toml").exists() == (given.code == 0)


def findings(code=0):
    """kind -> finding of `data check`."""
    told = milbench("data", "check", "mine", "--json", code=code)
    found = json.loads(told[told.index("{") :])  # a slow machine tells of its progress first
    return {one["kind"]: one for one in found["findings"]}


def add(*words, code=0):
    return milbench("data", "add", "mine", *words, code=code)


def features(root, slides):
    folders.clam(root / "features", slides, patches=False)
    return ("--features", root / "features", "--encoder", "enc")


def test_every_slide_of_a_list_is_in_the_bag_of_its_case(tmp_path):
    (tmp_path / "t.csv").write_text("case_id,slides,time,event\nP1,/x/a1.pt;/x/a2.pt,10,1\nP2,b1.pt,20,0\nP3,,9,1\n")
    add("--labels", "t.csv", *SURVIVAL, "--skip-incomplete", *features(tmp_path, ["a1", "a2", "b1", "c9"]))
    data = datasets.load("mine", "enc")
    assert data.sizes() == {"P1": 10 + 11, "P2": 12}
    assert any("1 slide left out: incomplete: P3" in note for note in data.notes)
    assert any("1 file of slides that are not in the label table: c9" in note for note in data.notes), "the report names it, too"


def test_file_names_in_another_unicode_form_are_the_same(tmp_path):
    names = [f"{NFC}_{i}" for i in range(4)]
    (tmp_path / "t.csv").write_text("slide_id,label\n" + "".join(f"{name},{'AB'[i % 2]}\n" for i, name in enumerate(names)))
    add("--labels", "t.csv", *features(tmp_path, [unicodedata.normalize("NFD", name) for name in names]))
    assert set(datasets.load("mine", "enc").sizes()) == set(names)


def test_what_milbench_advises_to_leave_out_can_be_pasted(tmp_path):
    names = [f"H&E 5%_{i}, block #{i}" for i in range(6)]
    lines = [f'"{name}",P{i},{"AB"[i % 2]}\n' for i, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("slide_id,case_id,label\n" + "".join(lines))
    given = ("--labels", "t.csv", *features(tmp_path, names[:4]))
    told = add(*given, code=1)
    advised = re.search(r"milbench data add mine (--exclude .*)", told)
    add(*given, *shlex.split(advised[1]))
    assert set(datasets.load("mine", "enc").sizes()) == set(names[:4])


def test_tissues_and_stains_of_cases_are_counted_and_named(tmp_path):
    cases = [f"TCGA-ZZ-A00{i}" for i in range(4)]
    slides = [f"{case}-{kind}.X{i}" for i, case in enumerate(cases) for kind in ("01Z-00-DX1", "01A-01-TS1", "11A-01-TS1")]
    (tmp_path / "t.csv").write_text("case_id,label\n" + "".join(f"{case},{'AB'[i % 2]}\n" for i, case in enumerate(cases)))
    told = add("--labels", "t.csv", *features(tmp_path, slides))
    for kind in (
        "4 diagnostic slides (DX) of primary tumour (01)",
        "4 frozen sections (TS) of normal tissue (11)",
        "4 frozen sections (TS) of primary tumour (01)",
    ):
        assert kind in told
    assert len(findings()["kinds"]["ids"]) == 8
    assert any("normal tissue" in note for note in datasets.load("mine", "enc").notes)


def test_endings_of_files_of_cases_are_counted(tmp_path):
    slides = [f"{100 + i}_{stain}" for i in range(4) for stain in ("HE", "KI67")]
    (tmp_path / "t.csv").write_text("case_id,label\n" + "".join(f"{100 + i},{'AB'[i % 2]}\n" for i in range(4)))
    add("--labels", "t.csv", *features(tmp_path, slides))
    assert "4 ending in HE, 4 ending in KI67" in findings()["kinds"]["what"]
    (tmp_path / "t.csv").write_text("case_id,label\n" + "".join(f"{i},{'AB'[i % 2]}\n" for i in range(4)))
    milbench(
        "data", "add", "other", "--labels", "t.csv", *features(tmp_path / "o", [f"{i}_{j}" for i in range(4) for j in (1, 2)])
    )
    assert not any("kinds" in note for note in datasets.load("other", "enc").notes), "numbers are no kinds"


def test_a_clinical_table_is_joined_with_a_table_of_slides(tmp_path):
    (tmp_path / "clinical.txt").write_text(
        "PATIENT_ID\tOS_STATUS\tOS_MONTHS\nP1\t1:DECEASED\t10\nP2\t0:LIVING\t20\nP9\t0:LIVING\t5\n"
    )
    (tmp_path / "slides.csv").write_text("slide_id,case_id\na.svs,P1\nb.svs,P1\nc.svs,P2\nd.svs,P7\n")
    add("--labels", "clinical.txt", "--slides", "slides.csv", *SURVIVAL, *features(tmp_path, "abcd"))
    data = datasets.load("mine", "enc")
    assert data.sizes() == {"P1": 10 + 11, "P2": 12}
    found = [
        one["ids"] for one in json.loads(milbench("data", "check", "mine", "--json"))["findings"] if one["kind"] == "left-out"
    ]
    assert sorted(found) == [["P9"], ["d"]]
    (tmp_path / "slides.csv").write_text("slide_id,case_id\na.svs,Q1\n")
    assert "none of its cases (Q1) is in the label table" in milbench("data", "check", "mine", code=1)


def test_folds_of_any_number(tmp_path):
    slides = [f"S{i}" for i in range(12)]
    (tmp_path / "t.csv").write_text("slide_id,label\n" + "".join(f"{slide},{'AB'[i % 2]}\n" for i, slide in enumerate(slides)))
    add("--labels", "t.csv", "--folds", 3, *features(tmp_path, slides))
    folds = datasets.load("mine", "enc").folds("kfold3")
    assert [len(fold.test) for fold in folds] == [4] * 3
    assert sorted(id for fold in folds for id in fold.test) == sorted(slides)
    assert "kfold7: 7-fold needs at least 7 cases of each class" in add("--folds", 7, code=1)


def test_an_excluded_slide_of_a_case_is_known_by_its_file(tmp_path):
    (tmp_path / "t.csv").write_text("case_id,label\nP1,A\nP2,B\n")
    add("--labels", "t.csv", *features(tmp_path, ["P1-a", "P1-b", "P2-a"]))
    assert "nobody is called P1-c" in add("--exclude", "P1-c", code=1)
    add("--exclude", "P1-b")
    assert datasets.load("mine", "enc").sizes() == {"P1": 10, "P2": 12}


def test_what_was_said_of_a_table_holds_until_something_else_is_said(tmp_path):
    (tmp_path / "t.csv").write_text("name,who,grade,label\nS1,P1,low,\nS2,P2,high,x\nS3,P3,N/A,y\n")
    add("--labels", "t.csv", "--columns", "slide=name,label=grade", "--classes", "low,high,neg=N/A")
    told = add("--columns", "case=who", "--replace")
    assert "slide = name, case = who, label = grade" in told
    assert "0 low: 1 · 1 high: 1 · 2 neg (N/A): 1" in told


def test_classes_of_a_file(tmp_path):
    (tmp_path / "t.csv").write_text(HER2)
    (tmp_path / "classes.toml").write_text('positive = ["HER2+", "ER+, PR-"]\nnegative = ["HER2-", "=x", \'a "b"\']\n')
    assert "0 positive (HER2+, ER+, PR-): 2" in add("--labels", "t.csv", "--classes", "classes.toml")


@pytest.mark.parametrize(
    "header", [",slide_id,train,val,test", "Unnamed: 0,slide_id,train,val,test", "train,val,test,slide_id,site"]
)
def test_a_column_of_ids_wins_over_an_index_in_a_split_table(tmp_path, header):
    flags = {"S1": (1, 0, 0), "S2": (1, 0, 0), "S3": (0, 1, 0), "S4": (0, 0, 1)}
    order = {"train": 0, "val": 1, "test": 2}
    lines = [",".join(str(flags[id][order[name]] if name in order else id if name == "slide_id" else at) for name in header.split(",")) for at, id in enumerate(flags)]  # fmt: skip
    (tmp_path / "t.csv").write_text(LABELLED)
    (tmp_path / "s.csv").write_text("\n".join([header, *lines]) + "\n")
    assert "2/1/1 (train/val/test)" in add("--labels", "t.csv", "--splits", "s.csv")


def test_an_index_that_was_read_for_ids_is_not_to_be_left_out(tmp_path):
    (tmp_path / "t.csv").write_text(LABELLED.replace("S4", "3"))
    (tmp_path / "s.csv").write_text(",name,train,test\n" + "".join(f"{i},x{i},{int(i < 3)},{int(i > 2)}\n" for i in range(5)))
    told = add("--labels", "t.csv", "--splits", "s.csv", code=1)
    assert "not in the label table" in told or "is in the label table" in told
    assert "--exclude" not in told


# Any table of these features


@st.composite
def tables(draw):
    """The text of a label table, and what it lists: slide -> why it is not used, or nothing."""
    cases = draw(st.integers(2, 6))
    lines, fate = [], {}
    separator = draw(st.sampled_from(",\t;"))
    index, tail = draw(st.booleans()), draw(st.sampled_from(("", separator, separator * 2)))
    gone = draw(st.sets(st.integers(0, cases - 1), max_size=cases - 1))
    for at in range(cases):
        slides = [f"{draw(st.sampled_from(('S', '/x/S', 'TCGA-AA-A00')))}{at}-{n}" for n in range(draw(st.integers(1, 3)))]
        slides = [slide + draw(st.sampled_from(("", ".svs", ".h5"))) for slide in slides]
        label = draw(st.sampled_from(("A", "B", "A", "B", "N/A", "", "[Not Available]")))
        mark = draw(st.sampled_from([mark for mark in ("|", "; ", ";") if mark.strip() != separator] or ["|"]))
        groups = [slides] if draw(st.booleans()) else [[slide] for slide in slides]
        lines += [
            separator.join([*([str(len(lines))] if index else []), mark.join(some), f"P/{at}", label]) + tail for some in groups
        ]
        why = "excluded" if at in gone else "incomplete" if label not in "AB" or not label else ""
        fate |= {Path(slide).name.removesuffix(".svs").removesuffix(".h5"): why for slide in slides}
    header = separator.join([*([""] if index else []), "slide_id", "case_id", "label"]) + draw(st.sampled_from(("", tail)))
    order = draw(st.permutations(lines))
    return "\n".join([header, *order]) + "\n", fate, [f"P/{at}" for at in gone]


@given(tables())
@settings(max_examples=60, deadline=None)
def test_every_slide_of_a_table_is_used_or_named_as_unused(tmp_path_factory, drawn):
    text, fate, gone = drawn
    path = tmp_path_factory.mktemp("any") / "t.csv"
    path.write_text(text)
    table = Delimited.read(path)
    listed = labels.read(table, columns.roles(table, "subtyping", {}), labels.Options(gone, skip_incomplete=True))
    used = {row.slide for row in listed.rows}
    assert used == {slide for slide, why in fate.items() if not why}
    for why in ("excluded", "incomplete"):
        assert set(listed.unused[why]) == {slide for slide, of in fate.items() if of == why}
