"""A report in LaTeX. A table needs booktabs and xcolor and nothing else, and fits the page, whatever it holds."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from milbench.report.model import Entry, Report, Row, Table
from milbench.report.render.templates import Figures, environment

NARROW, WIDE = 397.0, 500.0  # points: 5.5 and 7 inches of text; a table takes the first that it fits
LINES = 52  # lines of a page that a table and its notes may take
# (wrap long columns, width of the text, size, width of a digit in points, space on each side of a column): the first that fits
SIZES = (
    (False, NARROW, "small", 4.63, 5.0), (False, NARROW, "footnotesize", 4.25, 4.0), (True, WIDE, "footnotesize", 4.25, 4.0),
    (False, NARROW, "scriptsize", 3.99, 3.0), (False, WIDE, "scriptsize", 3.99, 3.0), (False, WIDE, "scriptsize", 3.99, 1.5),
    (True, WIDE, "scriptsize", 3.99, 1.5),
)  # fmt: skip
LONG = 32  # widths of a digit from which a column may be wrapped

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': "''", "`": r"\`{}",
    "\u00a0": "~", "–": "--", "—": "---", "‘": "`", "’": "'", "“": "``", "”": "''", "…": r"\dots{}", "•": r"$\bullet$",
    "†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "−": "$-$", "°": r"$^{\circ}$",
    "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$", "≠": r"$\neq$", "∞": r"$\infty$", "√": r"$\surd$", "→": r"$\rightarrow$",
    "←": r"$\leftarrow$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "Δ": r"$\Delta$", "µ": r"$\mu$", "²": "$^{2}$", "³": "$^{3}$",
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ø": r"\o{}", "Ø": r"\O{}", "œ": r"\oe{}", "Œ": r"\OE{}",
    "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "§": r"\S{}", "©": r"\copyright{}",
}  # fmt: skip
_GREEK = {
    c: f"$\\{unicodedata.name(c).split()[-1].lower().replace('lamda', 'lambda')}$" for c in "αβγδεζηθικλμνξπρστυφχψω"
} | {c: f"$\\{unicodedata.name(c).split()[-1].title().replace('Lamda', 'Lambda')}$" for c in "ΓΘΛΞΠΣΦΨΩ"}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".", "\u0308": '"',
    "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c", "\u0323": "d", "\u0331": "b",
}  # fmt: skip


def document(report: Report, figures: Figures) -> str:
    """A document for pdflatex, which reads tables/*.tex and figures/*.pdf beside it."""
    made = environment(
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>",
    )  # fmt: skip
    made.filters |= {"escape": escape, "breakable": breakable}
    return made.get_template("report.tex.j2").render(report=report, figures=figures)


def escape(text: str) -> str:
    """Plain text as LaTeX, whatever characters it holds; one that pdflatex has no sign for is named by its number, [U+4E2D]."""
    out: list[str] = []
    for character in " ".join(text.split()):
        if character == "-" and out[-1:] == ["-"]:
            out.append("{}")  # two hyphens stay two, no dash
        base, *accents = [character] if character in _SPECIAL else list(unicodedata.normalize("NFD", character))
        if not accents and base in _ACCENTS and out:
            out.append(f"\\{_ACCENTS[base]}{{{out.pop()}}}")
            continue
        written = _SPECIAL.get(base) or _GREEK.get(base) or (base if base.isascii() and base.isprintable() else None)
        if written is None or any(accent not in _ACCENTS for accent in accents):
            out.append(f"[U+{ord(character):04X}]")
            continue
        for accent in accents:
            written = f"\\{_ACCENTS[accent]}{{{written}}}"
        out.append(written)
    return "".join(out)


def breakable(text: str) -> str:
    """Text of a paragraph: long paths, names and words may break inside, so that no line is overfull."""
    words = []
    for word in text.split():
        parts = re.split(r"(?<=[/_\-.=,:+\[\](){}@])(?=\w)", word) if len(word) > 14 else [word]
        pieces = [part[i : i + 30] for part in parts for i in range(0, len(part), 30)]
        words.append(r"\allowbreak{}".join(map(escape, pieces)))
    return re.sub(r"(\[U\+[0-9A-F]+\])(?=\[)", r"\1\\allowbreak{}", " ".join(words))


def table(table: Table) -> str:
    """`table` environments, one a page: the rows, then the notes under the last of them."""
    lines = [f"% {table.name}: made by milbench report; needs \\usepackage{{booktabs,xcolor}}"]
    pages = list(_pages(table))
    for number, (rows, notes) in enumerate(pages):
        lines += ["\\begin{table}[htbp]", "\\centering"]
        if number == 0:
            partial = f" \\textbf{{Partial:}} {breakable(table.partial)}." if table.partial else ""
            lines.append(f"\\caption{{{breakable(table.title)}{'.' if partial else ''}{partial}}}\\label{{tab:{table.name}}}")
        else:
            lines.append("\\addtocounter{table}{-1}\\caption{(continued)}")
        if rows:
            for columns in _chunks(table):
                lines += _tabular(table, rows, columns)
        if notes:
            lines += ["\\begin{minipage}{0.98\\linewidth}\\footnotesize\\raggedright"]
            lines += [f"{_note(note)}\\par" for note in notes] + ["\\end{minipage}"]
        lines.append("\\end{table}")
    return "\n".join(lines) + "\n"


def _note(note: str) -> str:
    letter = re.match(r"\(([a-z]{1,2})\) ", note)
    return f"\\textsuperscript{{{letter[1]}}} {breakable(note[letter.end() :])}" if letter else breakable(note)


@dataclass(frozen=True)
class _Fit:
    """How a table fits: size of its letters, width of a digit, space beside a column, and wrapped columns (0 is the first)."""

    size: str
    digit: float
    space: float
    wrapped: dict[int, float]


def _pages(table: Table) -> Iterator[tuple[list[Row], list[str]]]:
    """Rows and notes of each page. A page is cut above a heading or a rule where one is near."""
    chunks = _chunks(table)
    fit = _fit(table, chunks[0])
    rows, notes, room = list(table.rows), list(table.notes), LINES - 5 * len(chunks)
    heights = [_height(row, fit) * len(chunks) for row in rows]
    while sum(heights) > room:
        most = max(1, sum(total <= room for total in accumulate(heights)))
        near = [i for i in range(max(1, most // 2), most + 1) if rows[i].rule or not rows[i].entries]
        cut = max(near, default=most)
        while cut > 1 and rows[cut].below:
            cut -= 1
        yield rows[:cut], []
        rows, heights = rows[cut:], heights[cut:]
    used, left = sum(heights), True
    while left:
        taken: list[str] = []
        while notes and (used + _note_height(notes[0]) <= room + 2 or not (used or taken)):
            used += _note_height(notes[0])
            taken.append(notes.pop(0))
        yield rows, taken
        rows, used, left = [], 0, bool(notes)


def _note_height(note: str) -> int:
    return 1 + len(note) // 115


def _height(row: Row, fit: _Fit | None) -> int:
    """Lines that a row takes once its long cells are wrapped."""
    if fit is None or not row.entries:
        return 1
    texts = [row.label, *(entry.text for entry in row.entries)]
    wrapped = [(texts[i], width) for i, width in fit.wrapped.items()]
    return max([1, *(1 + int(_width(text) * fit.digit / (0.9 * width)) for text, width in wrapped)])


_BROAD, _THIN = set("mwMWABCDEFGHKNOPQRUVXYZ+±−–→←↑↓×%&@Δ"), set("iljtfrI;:!'|()[] ")


def _width(text: str) -> float:
    """Estimated width in widths of a digit."""
    text = re.sub(r"[^\x00-\x7f]", lambda match: "[U+00000]" if escape(match[0]).startswith("[U+") else match[0], text)
    return sum(1.56 if c in _BROAD else 0.7 if c in _THIN else 0.57 if c in ".," else 1.0 if c.isdigit() else 1.08 for c in text)


def _entry_width(entry: Entry) -> float:
    raised = 0.9 * len(entry.mark) + (0.9 if entry.dagger else 0)
    return _width(entry.text.replace(" ± ", "±")) * (1.12 if entry.style == "best" else 1.0) + raised


def _fit(table: Table, columns: Sequence[int]) -> _Fit | None:
    """The largest size in which the first column and these fit the page, with long ones wrapped where they must; or None."""
    natural = {0: max([_width(table.corner), *(_width(row.label) for row in table.rows if row.entries)])}
    for i in columns:
        natural[i + 1] = max([_width(table.headers[i][1]), *(_entry_width(row.entries[i]) for row in table.rows if row.entries)])
    for group, members in groupby(columns, key=lambda i: table.headers[i][0]):  # a heading may be wider than what is below
        spanned = [i + 1 for i in members]
        natural[spanned[-1]] += max(0.0, _width(group) - sum(natural[i] for i in spanned))
    last = max(natural)
    natural[last] += max(0.0, _width(table.top) - sum(width for i, width in natural.items() if i))
    long = {i: need for i, need in natural.items() if need > LONG}
    for wrap, width, size, digit, space in SIZES:
        left = width - 2 * space * (len(natural) - 1) - sum(need for i, need in natural.items() if i not in long) * digit
        if not wrap and sum(long.values()) * digit <= left:
            return _Fit(size, digit, space, {})
        if wrap and long and left >= 60 * len(long):
            return _Fit(size, digit, space, {i: left * need / sum(long.values()) for i, need in long.items()})
    return None


def _chunks(table: Table) -> list[list[int]]:
    """The columns side by side; where they do not fit, stacked in several blocks, cut between groups if possible."""
    if not table.headers or _fit(table, range(len(table.headers))):
        return [list(range(len(table.headers)))]
    chunks: list[list[int]] = [[]]
    for _, members in groupby(range(len(table.headers)), key=lambda i: table.headers[i][0] or i):
        group = list(members)
        for block in [group] if _fit(table, group) else [[i] for i in group]:
            if chunks[-1] and not _fit(table, chunks[-1] + block):
                chunks.append([])
            chunks[-1] += block
    return chunks


def _tabular(table: Table, rows: Sequence[Row], columns: Sequence[int]) -> list[str]:
    fit = _fit(table, columns) or _Fit(*SIZES[-1][2:], {})
    kinds = [f"p{{{fit.wrapped[i]:.0f}pt}}" if i in fit.wrapped else "c" if i else "l" for i in (0, *(c + 1 for c in columns))]
    lines = [
        f"\\{fit.size}\\setlength{{\\tabcolsep}}{{{fit.space:g}pt}}",
        f"\\begin{{tabular}}{{@{{}}{''.join(kinds)}@{{}}}}",
        "\\toprule",
    ]
    if table.top:
        lines += [
            f" & \\multicolumn{{{len(columns)}}}{{c}}{{{escape(table.top)}}} \\\\",
            f"\\cmidrule(l){{2-{len(columns) + 1}}}",
        ]
    groups = [(name, len(list(some))) for name, some in groupby(columns, key=lambda i: table.headers[i][0])]
    if any(name for name, _ in groups):
        lines.append(" & ".join(["", *(f"\\multicolumn{{{size}}}{{c}}{{{escape(name)}}}" for name, size in groups)]) + " \\\\")
        ends = [sum(size for _, size in groups[: i + 1]) + 1 for i in range(len(groups))]
        named = [(end, size) for end, (name, size) in zip(ends, groups, strict=True) if name]
        lines.append("".join(f"\\cmidrule(l{'' if end == ends[-1] else 'r'}){{{end - size + 1}-{end}}}" for end, size in named))
    heads = [escape(table.corner)]
    for i in columns:
        head = escape(table.headers[i][1])
        heads.append(f"\\textcolor{{gray}}{{{head}}}" if _quiet(table, i) else head)
    lines += [" & ".join(heads) + " \\\\", "\\midrule"]
    for number, row in enumerate(rows):
        if row.rule and number:
            lines.append("\\midrule")
        if row.entries:
            cells = [_label(row, 0 in fit.wrapped), *(_cell(row.entries[i], i + 1 in fit.wrapped) for i in columns)]
            lines.append(" & ".join(cells) + " \\tabularnewline")
        else:
            kind = f"p{{{NARROW:g}pt}}" if _width(row.label) * fit.digit > NARROW else "l"
            lines.append(f"\\multicolumn{{{len(columns) + 1}}}{{@{{}}{kind}}}{{\\emph{{{breakable(row.label)}}}}} \\\\")
    return [*lines, "\\bottomrule", "\\end{tabular}", "\\par\\smallskip"]


def _quiet(table: Table, column: int) -> bool:
    return all(row.entries[column].style == "quiet" for row in table.rows if row.entries)


def _label(row: Row, wrapped: bool) -> str:
    text = f"\\raggedright {breakable(row.label)}" if wrapped else escape(row.label)
    if text[:1] in ("[", "*"):
        text = "{}" + text  # after the end of a line these would be an option of it
    return f"\\quad\\textcolor{{gray}}{{{text}}}" if row.below else text


def _cell(entry: Entry, wrapped: bool) -> str:
    text = breakable(entry.text) if wrapped else escape(entry.text.replace(" ± ", "±"))
    text = re.sub(r"(?<![\w.\]}])([+-])(?=\d)", r"$\1$", text)  # a minus, not a hyphen
    if entry.style and text:
        text = {"best": "\\textbf", "second": "\\underline", "quiet": "\\textcolor{gray}"}[entry.style] + f"{{{text}}}"
    if entry.dagger or entry.mark:
        text += "\\textsuperscript{" + ("$\\dagger$" if entry.dagger else "") + entry.mark + "}"
    return f"\\raggedright {text}" if wrapped else text
