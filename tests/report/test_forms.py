"""The report as LaTeX, HTML and Markdown: names of any kind, tables of any size, figures, the same bytes each time."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from milbench import MilbenchError
from milbench.plots.figure import COLUMN, PAGE, Figure
from milbench.report import build, write
from milbench.report.model import Entry, Report, Row, Section, Table
from milbench.report.render import latex, markdown
from milbench.trials.plan import Plan, merge
from milbench.trials.store import Store
from tests.builders.command import milbench
from tests.builders.paper import paper_store
from tests.builders.results import cell_of, finished, made_up_suite, predictions_file, sign, spec

ODD = [
    "odd_name", "_lead_", "a & b &amp; c", "100 % #1", "#1", "~x~ ~~y~~", "x^2 $y$ ${z}$", "back\\slash \\n", "{braces}", "a < b > c <b>d</b>",
    "a|b || c", "*star* **two**", "`tick`", "[link](http://x) [x]: y", "!&?@'\"", "-- and ---", "- 1. > x", "naïve Ünïcode Łódź ß Ångström",
    "β-VAE αβγ Δ ≤ ± × →", "中文 моделЬ 🙂", "e\u0301 \u0301", "tab\tand\nline",
]  # fmt: skip
METHODS = {"abmil": 1.0, **dict.fromkeys(ODD, 1.5)}


@pytest.fixture(autouse=True, scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("milbench.compare.pairing.REPLICATES", 100)
        patch.setattr("milbench.trials.store.flush", lambda path: None)
        yield


def drawn(name, width, title="A title with 100 % & _"):
    def draw():
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(width, 2))
        axes.plot([1, 2, 3], [3, 1, 2])
        return figure

    return Figure(name, title, "What is plotted, over what & what to see: a_b < c. " * 3, [{"x": 1, "y": 2.5}], draw)


def plain_table(name, rows, columns, text="0.500 ± 0.100", notes=(), label="Method {}"):
    headers = [("", f"column {i}") for i in range(columns)]
    lines = [Row(label.format(i), [Entry(text) for _ in range(columns)], rule=i % 7 == 3) for i in range(rows)]
    return Table(name, f"Table {name}", headers, lines, list(notes), [{"a": 1}])


def odd_report(root, **changes):
    """A report with all that the others plug in: verdicts, figures, an appendix, figures of an analysis."""
    store, _ = made_up_suite(root / "results", METHODS, n=9, title=" ".join(ODD), reproduces="Table 1 of a & b", **changes)
    drawn("analysis-1", COLUMN, "Saved before").save(store.root / "analysis")
    report = build(store, "made-up")
    path = "/a/very/long/path/without_any_spaces/" + "x" * 200 + "/and-more_of-it.h5"
    claims = ["A claim that is long enough to need more than one line of the page, twice over. " * 2, "Short", *ODD]
    verdicts = [
        Row(claim, [Entry(v), Entry("+0.013"), Entry("[-0.010, +0.030]"), Entry("A sentence that says why it is so. " * 3)])
        for claim, v in zip(claims, ["supported", "not supported", "inconclusive", "not run"] * 6, strict=True)
    ]
    report.verdicts = [
        Table(
            "verdicts",
            "Verdicts",
            [("", h) for h in ("verdict", "effect", "95 % interval", "why")],
            verdicts,
            [path],
            [],
            corner="Claim",
        )
    ]
    report.sections[0].figures = [drawn("narrow", COLUMN), drawn("wide", PAGE)]
    report.sections[0].appendix = [
        plain_table("many-columns", 16, 16),
        plain_table("many-rows", 150, 3, notes=[f"({chr(97 + i)}) note {path}" for i in range(26)]),
        plain_table("many-notes", 3, 3, notes=["A note of some length, which says what is to be said. " * 4] * 40),
        plain_table("long-labels", 60, 4, label="dsmil[lineage=hipt,nonlinear=false,values=linear,number={}]"),
        Table("long-heading", "T", [("", "x")], [Row("A heading of many words, " * 12, []), Row("a", [Entry("1")])], [], []),
        plain_table("nothing", 0, 0),
        plain_table("words-only", 2, 1, text="no numbers"),
    ]  # fmt: skip
    return report


@pytest.fixture(scope="module")
def odd(quick, tmp_path_factory):
    """Such a report, and the folder in which it is written in every form."""
    root = tmp_path_factory.mktemp("odd")
    report = odd_report(root)
    write(report, root / "report")
    return report, root / "report"


def compile_tex(folder):
    """Run pdflatex once, in the folder; returns its log."""
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "report.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]
    return (folder / "report.log").read_text(errors="replace")


needs_pdflatex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")


@needs_pdflatex
def test_the_document_compiles_without_a_warning_whatever_it_holds(odd):
    log = compile_tex(odd[1])
    assert not re.findall(r".*(?:Warning|Overfull|Underfull|undefined).*", log)


@pytest.mark.slow
@needs_pdflatex
@pytest.mark.parametrize("published", ["side", "below"])
def test_the_papers_tables_compile_without_a_warning(published, tmp_path):
    store = paper_store(
        tmp_path / "results",
        "paper-all",
        n=3,
        missing={"vits-dino"},
        folds=[0],
        seeds=[0, 1],
        skip=lambda cell: cell.seed == 1,
    )
    write(build(store, "paper-all", published=published, tests=False), tmp_path / "report", ["latex"])
    log = compile_tex(tmp_path / "report")
    assert not re.findall(r".*(?:Warning|Overfull|Underfull|undefined).*", log)
    pages = int(re.search(r"Output written on report.pdf \((\d+) pages", log)[1])
    assert 10 <= pages <= 30


def test_tables_need_booktabs_and_xcolor_only(odd):
    _, folder = odd
    commands = {c for path in (folder / "tables").glob("*.tex") for c in re.findall(r"\\([A-Za-z]+)", path.read_text())}
    ours = {"toprule", "midrule", "bottomrule", "cmidrule", "textcolor"}
    assert not {"multirow", "resizebox", "SI", "num", "tnote", "includegraphics", "rowcolor", "makecell"} & commands
    assert ours - {"cmidrule", "textcolor"} <= commands
    assert r"\usepackage{booktabs,xcolor,graphicx}" in (folder / "report.tex").read_text()


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("a_b & 50% #1", r"a\_b \& 50\% \#1"),
        ("~^\\{}$<>", r"\textasciitilde{}\textasciicircum{}\textbackslash{}\{\}\$$<$$>$"),
        ("é Å ñ Ł ß", r"\'{e} \r{A} \~{n} \L{} \ss{}"),
        ("βΔ≤", r"$\beta$$\Delta$$\leq$"),
        ("中🙂", "[U+4E2D][U+1F642]"),
        ("--x --- –", "-{}-x -{}-{}- --"),
        ("a\nb\t c", "a b c"),
    ],
)
def test_latex_of_every_character(text, tex):
    assert latex.escape(text) == tex


def test_long_words_of_a_note_may_break():
    assert latex.breakable("short words stay") == "short words stay"
    assert (
        latex.breakable("/home/someone/features_of")
        == r"/\allowbreak{}home/\allowbreak{}someone/\allowbreak{}features\_\allowbreak{}of"
    )
    pieces = latex.breakable("x" * 70).split(r"\allowbreak{}")
    assert [len(piece) for piece in pieces] == [30, 30, 10]


def test_a_minus_is_no_hyphen_in_latex():
    table = Table("t", "T", [("", "x")], [Row("a-1", [Entry("-0.010")]), Row("b", [Entry("[-0.010, +0.030]")])], [], [])
    lines = latex.table(table).splitlines()
    assert r"a-1 & $-$0.010 \tabularnewline" in lines
    assert r"b & [$-$0.010, $+$0.030] \tabularnewline" in lines


def test_a_long_table_is_continued_and_loses_no_row():
    text = latex.table(plain_table("many", 150, 3, notes=["the note"]))
    assert text.count(r"\begin{table}") == text.count("(continued)") + 1 >= 3
    assert [f"Method {i} &" in text for i in range(150)] == [True] * 150
    assert text.rindex("the note") > text.rindex("Method 149")
    for page in text.split(r"\begin{table}")[1:-1]:
        assert page.count("tabularnewline") % 7 == 3 or page.count("tabularnewline") % 7 == 0, "cut above a rule"


def test_a_wide_table_is_stacked_and_loses_no_column():
    text = latex.table(plain_table("wide", 2, 16))
    blocks = text.split(r"\begin{tabular}")[1:]
    assert len(blocks) > 1
    assert sorted(int(n) for block in blocks for n in re.findall(r"column (\d+)", block)) == list(range(16))
    assert all("Method 1 &" in block for block in blocks)


def markdown_cells(text):
    """The first column of every table, and list items, as a reader of the page sees them."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    shown, inside = [], None
    for token in tokens:
        if token.type in ("td_open", "th_open", "list_item_open"):
            inside = token.type
        if token.type == "inline" and inside:
            shown.append("".join(child.content for child in token.children if child.type in ("text", "code_inline")))
            assert {child.type for child in token.children} <= {
                "text",
                "html_inline",
                "em_open",
                "em_close",
                "strong_open",
                "strong_close",
            }, token
            inside = None
    return shown


def test_markdown_shows_every_name_as_it_is():
    rows = [Row(name, [Entry("0.1"), Entry(name)]) for name in ODD]
    notes = [f"{name}" for name in ODD]
    shown = markdown_cells(markdown.table(Table("t", "T", [("", "x"), ("g|", "y")], rows, notes, [])))
    names = [" ".join(name.split()) for name in ODD]
    assert shown[:3] == ["Method", "x", "g|: y"]
    assert shown[3 : 3 + 3 * len(ODD)] == [text for name in names for text in (name, "0.1", name)]
    assert shown[3 + 3 * len(ODD) :] == names


def test_markdown_shows_the_figures_and_all_tables(odd):
    report, folder = odd
    text = (folder / "report.md").read_text()
    for name in ("narrow", "wide", "analysis-1"):
        assert f"](figures/{name}.png)" in text
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert [text.count(markdown.table(table)) for table in report.tables] == [1] * len(report.tables)
    order = [
        text.index(part)
        for part in ("## Verdicts", "Paired comparison with ABMIL**", "(figures/narrow", "## Figures of analyses", "## Appendix")
    ]
    assert order == sorted(order)


class Page(HTMLParser):
    """Tables of a page as lists of rows of cells, and every address it holds."""

    def __init__(self):
        super().__init__()
        self.tables, self.addresses, self.ids, self.open, self.cell, self.keys = [], [], [], [], None, []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [value for name, value in attributes.items() if name in ("src", "href", "srcset", "action", "data")]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.cell = ""
            self.keys.append(attributes.get("data-n"))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}>"
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


def read_page(path):
    page = Page()
    page.feed(path.read_text())
    assert not page.open
    return page


def test_the_page_holds_every_table_and_needs_nothing_else(odd):
    report, folder = odd
    path = folder / "report.html"
    page = read_page(path)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.search(r"@import|url\(|fetch\(|https?://(?!x\))", re.sub(r"data:[^\"]*", "", path.read_text()))
    assert sum(address.startswith("data:image/png") for address in page.addresses) == 3
    assert len(set(page.ids)) == len(page.ids)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    shown = [table for table in report.tables if table.rows]
    assert len(page.tables) == len(shown)
    for table, found in zip(shown, page.tables, strict=True):
        body = found[-len(table.rows) :]
        assert [row[0] for row in body] == [row.label for row in table.rows]
        for row, cells in zip(table.rows, body, strict=True):
            raised = [e.text + ("†" if e.dagger else "") + e.mark for e in row.entries]
            assert [cell.replace("−", "-") for cell in cells[1:]] == raised


def test_rows_sort_by_their_numbers(tmp_path):
    texts = {
        "0.5 ± 0.1": 0.5,
        "-0.010": -0.01,
        "+0.3": 0.3,
        "[-0.2, +0.1]": -0.2,
        "3/0/2": 3,
        "1,234": 1234,
        "–": None,
        "not run": None,
        "2e-05": 2e-5,
    }
    rows = [Row(f"r{i}", [Entry(text)]) for i, text in enumerate([*texts, "< 0.001"])]
    _, plan = made_up_suite(tmp_path / "results", {"abmil": 1.0, "mean": 2.0}, n=9)
    section = Section(plan, Table("t", "T", [("", "x")], rows, [], []), None, {})
    write(Report("made-up", "T", [section]), tmp_path, ["html"])
    keys = [key for key in read_page(tmp_path / "report.html").keys if key is not None]
    assert [float(key) if key else None for key in keys[:-1]] == list(texts.values())
    assert 0.000999 < float(keys[-1]) < 0.001, "less than the number it is below"


def test_a_reader_without_figures_or_appendix_sees_no_empty_heading(tmp_path):
    store, _ = made_up_suite(tmp_path / "results", {"abmil": 1.0, "mean": 2.0}, n=9)
    report = build(store, "made-up", tests=False)
    report.sections[0].figures = []
    write(report, tmp_path / "report")
    for name in ("report.html", "report.md", "report.tex"):
        text = (tmp_path / "report" / name).read_text()
        assert not re.search(
            r">Appendix|>Verdicts|>Figures|## (Appendix|Verdicts|Figures)|section\*\{(Appendix|Verdicts|Figures)", text
        )


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(tmp_path):
    first = contents(written(tmp_path / "one"))
    assert first == contents(written(tmp_path / "two"))
    assert {Path(name).suffix for name in first} == {".html", ".tex", ".md", ".csv", ".pdf", ".png", ".json"}


def written(root):
    write(odd_report(root), root / "report")
    return root / "report"


def test_only_the_formats_that_were_asked_for(tmp_path):
    made_up_suite(tmp_path / "results", {"abmil": 1.0, "mean": 2.0}, n=9)

    command = ("report", "--results", tmp_path / "results", "--reports", tmp_path / "out", "--format")
    milbench(*command, "csv", "--no-tests")
    assert list(contents(tmp_path / "out")) == ["made-up/tables/made-up.csv"]
    milbench(*command, "html, md")
    assert {Path(name).suffix for name in contents(tmp_path / "out")} == {".csv", ".html", ".md"}
    assert "'pdf' is not one of latex, md, html, csv" in milbench(*command, "pdf", code=2)


def test_a_suite_without_trials_is_an_error(tmp_path):
    store = Store(tmp_path)
    definition = {"title": "T", "task": "subtyping", "includes": [], "grid": {"aggregator": []}, "table": {"name": "t"}}
    merge(store, Plan(suite="hollow", definition=definition))
    with pytest.raises(MilbenchError, match=r"suite hollow lists no trials in .*; run it first: milbench run --suite hollow"):
        build(store, "hollow")


@pytest.mark.parametrize(
    "content", ["", "slide,case,fold,target,p0\n", "slide,case,fold,target,p0,p1\na,a,0,x,0.5,0.5\n", "slide,p0\na,0.5,7\n"]
)
def test_a_broken_predictions_file_is_named(content, tmp_path):
    store, plan = made_up_suite(tmp_path, {"abmil": 1.0, "mean": 2.0}, n=9)
    path = store.folder(plan.cells[0].trial_id) / "predictions.csv"
    path.write_text(content)
    sign(store, plan.cells[0].trial_id)
    with pytest.raises(MilbenchError, match=rf"{re.escape(str(path))} cannot be read \(.*\); remove the folder"):
        build(store, "made-up")


def test_results_of_two_schemas_never_meet(tmp_path):
    store, plan = made_up_suite(tmp_path, {"abmil": 1.0, "mean": 2.0}, n=9)
    path = store.folder(plan.cells[-1].trial_id) / "trial.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 3}))
    with pytest.raises(MilbenchError, match=rf"{re.escape(str(path))}: result schema 3, this milbench reads 2"):
        build(store, "made-up", tests=False)


def test_two_tables_of_one_name_are_an_error(tmp_path):
    store, _ = made_up_suite(tmp_path / "results", {"abmil": 1.0, "mean": 2.0}, n=9)
    report = build(store, "made-up")
    report.sections[0].appendix = [plain_table("made-up", 1, 1)]
    with pytest.raises(MilbenchError, match="two tables of this report are named made-up; rename"):
        write(report, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_figure_without_its_picture_is_named(tmp_path):
    store, _ = made_up_suite(tmp_path / "results", {"abmil": 1.0, "mean": 2.0}, n=9)
    saved = drawn("gone", COLUMN).save(store.root / "analysis")
    saved.png.unlink()
    with pytest.raises(MilbenchError, match=r"figure gone: .*gone\.png is missing; make the figure again, or remove gone\.json"):
        write(build(store, "made-up"), tmp_path / "report")


def test_without_tests_only_one_predictions_file_of_a_fold_is_read(tmp_path):
    store, plan = made_up_suite(tmp_path, {"abmil": 1.0, "mean": 2.0, "max": 1.5}, n=9, seeds=2)
    for cell in plan.cells:
        if cell.aggregator != "max":
            (store.folder(cell.trial_id) / "predictions.csv").unlink()
    section = build(store, "made-up", tests=False).sections[0]
    assert section.paired is None
    assert "(n = 27 slides)" in section.table.title
    assert "No significance is marked: this report was made without tests." in section.table.notes
    with pytest.raises(MilbenchError, match=r"predictions\.csv is missing"):
        build(store, "made-up")


def test_the_draw_that_validation_chose_is_the_one_reported(tmp_path):
    """Two draws, the second better on validation and worse on test: its test number is printed."""
    store, cells = Store(tmp_path), []
    target = np.array([1, 1, 0, 0, 0, 0, 0])
    for draw, (val, test) in enumerate([(0.6, 0.9), (0.7, 0.8)]):
        trial = spec(params={"draw": draw})
        cells.append(replace(cell_of(trial, "AB-MIL"), draw=draw))
        result = finished(trial, {"macro_auc": test})
        result.metrics["val"] = {"macro_auc": val}
        one = np.array([0.5, 0.5, 0.4, 0.4, 0.4, 0.4, 0.5 + draw / 10])  # of class 1: of 10 pairs one is a tie, or two are wrong
        score = np.stack([1 - one, one], axis=1)
        store.write(result, predictions_file([f"s{i}" for i in range(7)], target, score))
    layout = {"name": "tuned", "columns": ["metric"], "metrics": ["macro_auc"], "groups": [], "reference": "abmil"}
    definition = {"title": "T", "reproduces": "", "task": "subtyping", "grid": {"aggregator": ["abmil"]}, "table": layout}
    merge(store, Plan(suite="tuned", definition=definition, cells=cells))
    table = build(store, "tuned").sections[0].table
    assert [row.entries[0].text for row in table.rows] == ["0.800"]
    assert table.partial == ""


@pytest.mark.slow
def test_five_thousand_trials(tmp_path, monkeypatch):
    """100 predictions and a curve of 50 epochs each, without tests: right numbers. The time is printed, not judged."""
    import time

    curve = [{"epoch": i, "train_loss": 1.0 / (i + 1), "val_loss": 0.5, "val_macro_auc": i / 50} for i in range(50)]
    monkeypatch.setattr("tests.builders.results.finished", lambda *args, **kw: finished(*args, **{"curve": curve, **kw}))
    methods = {f"method-{i}": 1.0 + i / 20 for i in range(20)}
    store, plan = made_up_suite(tmp_path / "results", methods, folds=10, seeds=25, n=100)
    assert len(plan.cells) == 5000
    began = time.perf_counter()
    told = milbench("report", "--results", store.root, "--reports", tmp_path / "out", "--no-tests")
    print(f"report of 5,000 trials: {time.perf_counter() - began:.1f} s")
    assert "(n = 1000 slides)" in told
    assert "over 10 folds x 25 seeds, 100 tested in each" in told
    rows = (tmp_path / "out" / "made-up" / "tables" / "made-up.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 20
    assert all(row.endswith(",250,250") for row in rows[1:])
