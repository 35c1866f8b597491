"""Who is in a dataset and in which part of which fold, by its label table and its split tables, with what is odd there."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from shlex import quote

from milbench.datasets.base import Fold, Sample
from milbench.datasets.cohorts import COHORTS
from milbench.datasets.files import classes, ids, labels, split_files
from milbench.datasets.files.findings import MOST, Finding, kept
from milbench.datasets.files.manifest import Labels, Manifest
from milbench.datasets.splits import k_fold
from milbench.delimited import Delimited
from milbench.errors import MilbenchError
from milbench.words import counted


@dataclass
class Roster:
    """The samples of a dataset, and their folds.

    Args:
        samples: what is predicted.
        slides: sample -> its slides; empty where the table lists cases; names of feature files then say whose they are.
        splits: name -> folds, of the given split tables.
        forms: name -> how the table was understood.
        leaking: splits with a case in two parts of a fold.
        excluded: ids of slides and cases that are left out.
        unused: why -> slides, or cases, that the label table lists and that are not used.
        known: every slide and case that the label table names.
        unmatched: ids that are to be left out and that were not met yet.
        findings: what is odd.
    """

    samples: tuple[Sample, ...] = ()
    slides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    splits: dict[str, tuple[Fold, ...]] = field(default_factory=dict)
    forms: dict[str, str] = field(default_factory=dict)
    leaking: set[str] = field(default_factory=set)
    excluded: set[str] = field(default_factory=set)
    unused: dict[str, list[str]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    unmatched: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: str, kind: str, where: str, what: str, do: str = "", ids: Iterable[str] = ()) -> None:
        """Note a finding."""
        self.findings.append(Finding(severity, kind, where, what, do, tuple(ids)))  # type: ignore[arg-type]

    def stratum_names(self, manifest: Manifest) -> tuple[str, ...]:
        """What samples are counted by: classes, or whether the event was seen."""
        if manifest.task == "survival":
            return "censored", "events"
        return tuple(manifest.labels.classes) if manifest.labels else ()

    def known_patients(self, manifest: Manifest) -> int:
        """How many samples are of a patient that somebody named; a slide that is a case of its own may be of any."""
        return sum(manifest.unit == "case" or sample.case_id != sample.id for sample in self.samples)


def read(manifest: Manifest) -> Roster:
    """Samples and folds of a manifest. Whatever is wrong is a finding."""
    roster = Roster()
    if manifest.labels is None:
        return roster
    where = f"table {manifest.resolved(manifest.labels.file).name}"
    try:
        listed = labels.read(*_table(manifest, manifest.labels))
    except labels.Rows as error:
        roster.add("error", "labels", "labels", str(error.whole(manifest.home / f"{manifest.name}-rows.txt")))
        return roster
    except MilbenchError as error:
        roster.add("error", "labels", "labels", str(error))
        return roster
    roster.findings += listed.findings
    roster.unused = listed.unused
    _leave_out(roster, manifest, listed, where)
    if not listed.rows:
        roster.add("error", "nobody", where, "all of its rows are left out", "leave out fewer")
        return roster
    if manifest.labels.classes:
        known = {label for some in manifest.labels.classes.values() for label in some}
        if strange := sorted({row.label or "" for row in listed.rows} - known):
            do = "add it to [labels.classes], or add the labels again with --classes and --replace"
            roster.add("error", "class", where, f"{counted(len(strange), 'label')} in no class", do, strange)
            return roster
    _samples(roster, manifest, manifest.labels, listed.rows, where)
    _look(roster, manifest, listed.rows, where)
    for name, path in manifest.splits.items():
        _split(roster, manifest, name, path, listed.rows)
    for k in manifest.folds:
        try:
            k_fold(roster.samples, k, salt=manifest.name)
        except MilbenchError as error:
            roster.add("error", "folds", f"split kfold{k}", str(error))
    return roster


def _table(manifest: Manifest, said: Labels) -> tuple[Delimited, Mapping[str, str], labels.Options]:
    """The label table of a manifest, with what is said of it."""
    classes = {label for some in said.classes.values() for label in some}
    slides = Delimited.read(manifest.resolved(said.slides), manifest.encodings.get(said.slides)) if said.slides else None
    table = Delimited.read(manifest.resolved(said.file), manifest.encodings.get(said.file), header=said.header)
    return table, said.columns, labels.Options(manifest.exclude, said.skip_incomplete, classes, slides)


def _leave_out(roster: Roster, manifest: Manifest, listed: labels.Listed, where: str) -> None:
    """What is left out, and why; it is not missed in splits and among files."""
    asked = {ids.meant(id, listed.known) for id in manifest.exclude}
    used = {id for row in listed.rows for id in (row.slide, row.case)}
    unused = {id for some in listed.unused.values() for id in some}
    roster.excluded = {*asked, *unused, *(listed.known - used)}
    roster.unmatched = asked - listed.known
    roster.known = listed.known
    if asked:
        what = f"{len(asked)} slides or cases left out by choice"
        roster.add("warning", "excluded", manifest.name, what, ids=sorted(asked))
    for why, some in listed.unused.items():
        if some and why != "excluded":
            roster.add("warning", "left-out", where, f"{counted(len(some), manifest.lists)} left out: {why}", ids=some)


def tell_unmatched(roster: Roster, manifest: Manifest) -> None:
    """Ids that are to be left out and that no table and no file has; to be asked once all files are known."""
    if not roster.unmatched:
        return
    known, told = sorted(roster.known), []
    for id in sorted(roster.unmatched)[:MOST]:
        near = get_close_matches(id, known, n=3, cutoff=0.5)
        told.append(f"{id} (did you mean {' or '.join(map(ids.pasted, zip(near)))}?)" if near else id)
    what = f"nobody is called {', '.join(told)}, who is to be left out"
    what += f"; {len(roster.unmatched) - MOST:,} more are unknown" if len(roster.unmatched) > MOST else ""
    do = f"ids are such as {ids.pasted(known[:3])}; those with a comma stand in quotes, or in a file with one id a line"
    roster.add("error", "exclude", manifest.name, what, do)


def _samples(roster: Roster, manifest: Manifest, said: Labels, rows: Sequence[labels.Row], where: str) -> None:
    index = {label: i for i, some in enumerate(said.classes.values()) for label in some}
    by_sample: dict[str, list[labels.Row]] = defaultdict(list)
    for row in rows:
        by_sample[row.case if manifest.unit == "case" else row.slide or row.case].append(row)
    patients = Counter(ids.patient(id) for id in by_sample) if manifest.lists == "case" else Counter()
    several = {id: patient for id in by_sample if (patient := ids.patient(id)) and patients[patient] > 1}
    if several:
        what = (
            f"{counted(len(several), 'case')} that are samples of TCGA patients with several; generated folds keep these together"
        )
        roster.add("warning", "samples", where, what, ids=sorted(several))
    samples, torn = [], []
    for id, own in by_sample.items():
        first = own[0]
        if len({index.get(row.label or "") for row in own}) > 1:
            torn.append(id)
        label = index[first.label or ""] if manifest.task == "subtyping" else None
        samples.append(Sample(id, several.get(id, first.case), label, first.time, first.event))
    if torn:
        do = "predict slides instead (--unit slide), or correct the table"
        roster.add("error", "torn-case", where, f"{counted(len(torn), 'case')} with slides of two classes", do, torn)
    roster.samples = tuple(samples)
    roster.slides = {id: tuple(row.slide for row in own if row.slide) for id, own in by_sample.items()}


def _look(roster: Roster, manifest: Manifest, rows: Sequence[labels.Row], where: str) -> None:
    """What is odd about the label table."""
    columns = manifest.labels.columns if manifest.labels else {}
    if manifest.labels and (merged := classes.alike(manifest.labels.classes)):
        what = f"labels that differ in case or blanks only are classes of their own: {'; '.join(classes.several(merged))}"
        roster.add("warning", "alike", where, what, f"if they are one: {classes.spelled(merged)} --replace")
    if manifest.unit == "slide" and len({row.case for row in rows}) == len(rows):
        column = f"column {columns['case']}" if "case" in columns else "no column of cases"
        roster.add(
            "warning",
            "no-cases",
            where,
            f"every slide is a case of its own ({column}): a patient in two parts of a fold cannot be detected",
        )
    elif manifest.unit == "slide" and (alone := [row.id for row in rows if row.slide == row.case]):
        roster.add(
            "note", "no-case", where, f"{counted(len(alone), 'slide')} without a case, taken as cases of their own", ids=alone
        )
    counts = Counter(sample.stratum for sample in roster.samples)
    names = roster.stratum_names(manifest)
    if empty := [name for i, name in enumerate(names) if not counts[i]]:
        do = (
            "correct [labels.classes] or the table"
            if manifest.task == "subtyping"
            else "correct the table, or say which column it is"
        )
        severity = "warning" if empty == ["censored"] else "error"
        roster.add(severity, "empty-class", where, f"{' and '.join(empty)}: no samples", do)
    elif len(names) < 2:
        roster.add(
            "error", "one-class", where, f"all {len(roster.samples)} samples are {names[0]}", "there is nothing to tell apart"
        )


def _split(roster: Roster, manifest: Manifest, name: str, path: str, rows: Sequence[labels.Row]) -> None:
    where = f"split {name}"
    try:
        split = split_files.read(manifest.resolved(path), manifest.encodings.get(path))
    except MilbenchError as error:
        roster.add("error", "split", where, str(error))
        return
    targets = _targets(roster, manifest, rows)
    unknown: dict[str, None] = {}
    folds = []
    for fold in split.folds:
        parts: list[dict[str, None]] = [{}, {}, {}]
        for listed, part in zip(fold, parts, strict=True):
            for id in listed:
                meant = ids.meant(id, targets)
                roster.unmatched -= {id, meant}
                if meant in targets:
                    part.update(dict.fromkeys(targets[meant]))
                elif not {id, meant} & roster.excluded:
                    unknown[id] = None
        folds.append(Fold(*map(tuple, parts)))
    folds = _parts_used(roster, where, folds, manifest.drop.get(name))
    found = {id for fold in folds for part in fold for id in part}
    if unknown and not found:
        do = f"their spelling differs, or the table is of another cohort, or the ids stand elsewhere ({split.form})"
        roster.add("error", "unlabelled", where, f"none of its {counted(len(unknown), 'id')} is in the label table", do, unknown)
        return
    if unknown:
        what = f"{counted(len(unknown), 'id')} not in the label table"
        roster.add(
            "error",
            "unlabelled",
            where,
            what,
            _leave(manifest, list(unknown), len(found), split.form),
            unknown,
        )
    if split.unused:
        roster.add("warning", "unused-split", where, f"not used: {', '.join(split.unused)}")
    roster.splits[name], roster.forms[name] = tuple(folds), split.form
    _look_at_folds(roster, manifest, where, name)


def _parts_used(roster: Roster, where: str, folds: list[Fold], dropped: str | None) -> list[Fold]:
    """The folds without the part that is left out; the validation part is tested where there is no test part."""
    if dropped:
        folds = [fold._replace(**{dropped: ()}) for fold in folds]
    warn = partial(roster.add, "warning", "parts", where)
    if not any(fold.test for fold in folds) and any(fold.val for fold in folds):
        without = "its test part is left out by choice" if dropped else "no test part in the table"
        warn(f"{without}; its validation part is tested, as HIPT's survival folds are used, and no epoch is selected")
        return [Fold(fold.train, (), fold.val) for fold in folds]
    if lacking := [str(number) for number, fold in enumerate(folds) if not fold.val]:
        without = "its validation part is left out by choice" if dropped else "no validation part in the table"
        if len(lacking) == len(folds):
            warn(f"{without}: methods train as many epochs as the recipe has, and no epoch is selected")
        else:
            what = f"no validation part in fold{'s' * (len(lacking) > 1)} {', '.join(lacking)}: only the others select an epoch"
            warn(what, "leave it out of all: add the split again with --drop val")
    return folds


def _leave(manifest: Manifest, unknown: Sequence[str], found: int, form: str) -> str:
    """What to do about ids that only the split has: to leave them out is no advice where most are not known."""
    if len(unknown) > found:
        return f"their spelling differs, or other ids are meant than those that were read ({form})"
    many = len(unknown) > MOST
    what = quote(str(kept(manifest.home / f"{manifest.name}-unlabelled.txt", unknown))) if many else ids.pasted(unknown)
    return f"correct the tables, or leave them out: milbench data add {manifest.name} --exclude {what}"


def _targets(roster: Roster, manifest: Manifest, rows: Sequence[labels.Row]) -> dict[str, tuple[str, ...]]:
    """What an id in a split table stands for: a sample; the case of that slide; or all slides of that case."""
    stand: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if manifest.unit == "case":
            if row.slide:
                stand[row.slide] = [row.case]
        else:
            stand[row.case].append(row.slide or row.case)
    return {**{id: tuple(some) for id, some in stand.items()}, **{s.id: (s.id,) for s in roster.samples}}


def _look_at_folds(roster: Roster, manifest: Manifest, where: str, name: str) -> None:
    """What is odd about the folds of a split."""
    folds = roster.splits[name]
    same = [number for number, fold in enumerate(folds) if fold.val and set(fold.val) == set(fold.test)]
    if same:
        where_same = f" in {len(same)} of {counted(len(folds), 'fold')}" if len(folds) > 1 else ""
        what = f"the validation part is the test part{where_same}, so the test would choose its own epoch"
        do = "correct the table, or train without a validation part: give the split with --drop val"
        roster.add("error", "val-is-test", where, what, do)
    do = f"each belongs in one part of a fold{_way_on(folds)}"
    for number, fold in enumerate(folds):
        here = f"{where}, fold {number}" if len(folds) > 1 else where
        _look_at_fold(roster, manifest, here, fold._replace(val=()) if number in same else fold, do)
    _look_for_leaks(roster, manifest, where, name)
    everywhere = {id for fold in folds for part in fold for id in part}
    if outside := [sample.id for sample in roster.samples if sample.id not in everywhere]:
        what = f"{counted(len(outside), manifest.unit)} of the label table in no part"
        roster.add("warning", "unused", where, what, ids=outside)


def _way_on(folds: Sequence[Fold]) -> str:
    """The part without which nothing is in two parts, and every fold still has one to train and one to test."""
    for part in ("val", "test"):
        kept = [fold._replace(**{part: ()}) for fold in folds]
        if all(fold.train and (fold.test or fold.val) and not _in_two(map(set, fold)) for fold in kept):
            return f", or leave the {part} part out: give the split with --drop {part}"
    return ""


def _look_at_fold(roster: Roster, manifest: Manifest, where: str, fold: Fold, do: str) -> None:
    """Samples in two parts, which `do` mends; empty parts, and parts without a class."""
    if both := sorted(_in_two(map(set, fold))):
        what = f"{counted(len(both), manifest.unit)} in two parts"
        roster.add("error", "overlap", where, what, do, both)
    stratum = {sample.id: sample.stratum for sample in roster.samples}
    for part, own in zip(Fold._fields, fold, strict=True):
        if not own:
            if part != "val":
                way_on = (
                    "; to test the validation parts instead, give the split with --drop test"
                    if part == "test" and fold.val
                    else ""
                )
                roster.add("error", "empty-part", where, f"the {part} part is empty", f"correct the table{way_on}")
            continue
        strata = {stratum[id] for id in own}
        absent = [s for i, s in enumerate(roster.stratum_names(manifest)) if i not in strata and s != "censored"]
        if absent:
            severity = "error" if part == "train" else "warning"
            do = "" if severity == "warning" else "no model can learn it from these folds: correct the table"
            roster.add(severity, "class-missing", where, f"no {' and no '.join(absent)} in the {part} part", do)


def _in_two(parts: Iterable[set[str]]) -> set[str]:
    """Who is in more than one part of a fold."""
    train, val, test = parts
    return (train & val) | (train & test) | (val & test)


def _look_for_leaks(roster: Roster, manifest: Manifest, where: str, name: str) -> None:
    """Patients with slides in two parts of a fold."""
    case, folds = {sample.id: sample.case_id for sample in roster.samples}, roster.splits[name]
    cases = [[{case[id] for id in part} for part in fold] for fold in folds]
    torn = [_in_two(parts) for parts in cases]
    if not any(torn):
        return
    roster.leaking.add(name)
    numbers, tested = [len(some) for some in torn], [len(train & test) for train, _, test in cases]
    who = f"{_range(numbers)} patient{'s' * (max(numbers) != 1)}{' of each fold' * (len(folds) > 1)}"
    unknown = len(roster.samples) - roster.known_patients(manifest)
    but = f" of these; {counted(unknown, 'slide')} of unknown patients may leak there, too" if unknown else ""
    twin = f"{name}-grouped has none{but}"
    what = f"{who} with slides in two parts, {_range(tested)} of them in training and test ({twin})"
    roster.add("warning", "patients", where, what, ids=sorted(set().union(*torn)))


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def against_published(roster: Roster, manifest: Manifest) -> None:
    """Compare counts with the published ones of the cohort; a difference is a warning with both numbers."""
    if manifest.published is None or not roster.samples:
        return
    cohort, names = COHORTS[manifest.published], roster.stratum_names(manifest)
    differ = partial(roster.add, "warning", "published", f"{manifest.published} as published")
    here = Counter(sample.stratum for sample in roster.samples)
    total = sum(cohort.counts)
    if len(roster.samples) != total:
        differ(f"{counted(total, cohort.unit)}, here {len(roster.samples)}")
    comparable = manifest.task == "subtyping" and names == cohort.classes
    if manifest.task == "subtyping" and not comparable:
        differ(f"classes {', '.join(cohort.classes)}, here {', '.join(names)}")
    for i, (name, count) in enumerate(zip(cohort.classes, cohort.counts, strict=False)):
        if comparable and here[i] != count:
            differ(f"{count} {name}, here {here[i]}")
    for split, sizes in cohort.splits.items():
        if split in roster.splits:
            _sizes_of_folds(roster, split, sizes, differ)
    if comparable and cohort.official_by_class and "official" in roster.splits:
        for i, (name, printed) in enumerate(zip(cohort.classes, cohort.official_by_class, strict=True)):
            read = _sizes(roster, roster.splits["official"][0], i)
            if read != printed:
                differ(f"official {name} {_slashed(printed)}, here {_slashed(read)}")


def _sizes_of_folds(roster: Roster, split: str, sizes: Sequence[tuple[int, ...]], differ: Callable[..., None]) -> None:
    """Compare the sizes of a split's parts with the published ones."""
    read = [tuple(map(len, fold)) for fold in roster.splits[split]]
    if len(read) != len(sizes):
        differ(f"{split} has {counted(len(sizes), 'fold')}, here {len(read)}")
        return
    pairs = [(number, *pair) for number, pair in enumerate(zip(sizes, read, strict=True)) if pair[0] != pair[1]]
    if pairs:
        texts = [f"fold {number} {_slashed(printed)}, here {_slashed(here)}" for number, printed, here in pairs]
        differ(f"{split} differs in {counted(len(pairs), 'fold')}", ids=texts)


def _sizes(roster: Roster, fold: Fold, stratum: int) -> tuple[int, ...]:
    of = {sample.id: sample.stratum for sample in roster.samples}
    return tuple(sum(of[id] == stratum for id in part) for part in fold)


def _slashed(sizes: Sequence[int]) -> str:
    return "/".join(map(str, sizes))
