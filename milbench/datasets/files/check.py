"""Check everything that a manifest points to before anything is trained: what is missing, broken, inconsistent or unusual.

Feature files are looked at first: shapes, attributes, positions, a few rows. Where nothing is wrong each is then read whole, for
the hash of its contents. Both are remembered until a file changes, so a second look at hundreds of slides costs milliseconds.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from milbench.datasets.cohorts import ENCODERS
from milbench.datasets.files import roster as rosters
from milbench.datasets.files.findings import MOST, Finding, kept
from milbench.datasets.files.formats import BadFile, Facts, Layout
from milbench.datasets.files.formats import read as read_file
from milbench.datasets.files.ids import kind_of, pasted
from milbench.datasets.files.ids import slide as slide_of
from milbench.datasets.files.manifest import Features, Manifest
from milbench.datasets.files.roster import Roster
from milbench.datasets.files.seen import Progress, Seen
from milbench.words import counted

APART = 10  # broken files of one kind that get a line each


@dataclass
class FeatureSet:
    """One set of features, file by file.

    Args:
        features: as in the manifest.
        files: slide -> its file and the patches file that belongs to it, of slides that are in the roster.
        facts: slide -> what is known of its file, of files that can be used.
        contents: slide -> hash of all its features and positions; empty while anything is wrong, or labels are not there.
        slides: sample -> its slides here.
        steps: slide -> level-0 pixels between neighbouring patches; empty without positions.
        findings: what is odd.
        memory: what was seen, for the next time.
    """

    features: Features
    memory: Seen
    files: dict[str, tuple[Path, Path | None]] = field(default_factory=dict)
    facts: dict[str, Facts] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    slides: dict[str, tuple[str, ...]] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def in_dim(self) -> int:
        """The width most files have; 0 when there are none."""
        return max(
            Counter(facts.d for facts in self.facts.values()).items(), key=lambda item: (item[1], item[0]), default=(0, 0)
        )[0]

    @property
    def dtype(self) -> str:
        """How features are stored without loss: float16 where all files are, else float32."""
        return "float16" if {facts.dtype for facts in self.facts.values()} == {"float16"} else "float32"

    def add(self, severity: str, kind: str, what: str, do: str = "", ids: Iterable[str] = ()) -> None:
        """Note a finding."""
        self.findings.append(Finding(severity, kind, self.features.name, what, do, tuple(ids)))  # type: ignore[arg-type]


@dataclass
class Examined:
    """Everything a check found.

    Args:
        manifest: what was checked.
        roster: samples and folds.
        sets: the sets of features that were looked at.
    """

    manifest: Manifest
    roster: Roster
    sets: list[FeatureSet]

    @property
    def findings(self) -> list[Finding]:
        """All findings, errors first."""
        every = [*self.roster.findings, *(finding for features in self.sets for finding in features.findings)]
        return sorted(every, key=lambda finding: ("error", "warning", "note").index(finding.severity))

    def of(self, severity: str) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def remember(self) -> None:
        """Keep what was seen of feature files in the data folder."""
        for features in self.sets:
            features.memory.save()

    @property
    def lacking(self) -> str:
        """What must be added before anything can be run; empty when nothing."""
        command = f"milbench data add {self.manifest.name}"
        if self.manifest.labels is None:
            return f"labels are not added yet: {command} --labels CSV"
        if not self.manifest.features:
            return f"features are not added yet: {command} --encoder NAME --magnification 20 --patch-size 224 --features DIR"
        return ""


def examine(
    manifest: Manifest,
    only: Sequence[Features] | None = None,
    *,
    deep: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Examined:
    """Look at tables and feature files of a manifest.

    Args:
        manifest: of the dataset.
        only: sets of features to look at; None is all of the manifest.
        deep: look at every feature and every position, too, and read files anew whose contents are remembered.
        cache: where what was seen is remembered if the data folder cannot be written to.
        progress: called with what is done, files done and files in all.
    """
    roster = rosters.read(manifest)
    rosters.against_published(roster, manifest)
    chosen = manifest.features if only is None else only
    examined = Examined(manifest, roster, [_features(manifest, roster, features, deep, cache, progress) for features in chosen])
    if len(chosen) == len(manifest.features):
        rosters.tell_unmatched(roster, manifest)
    for files in examined.sets:
        if roster.samples and not any(finding.severity == "error" for finding in [*roster.findings, *files.findings]):
            _contents(files, deep, progress)
    return examined


def _features(
    manifest: Manifest, roster: Roster, features: Features, deep: bool, cache: Path | None, progress: Progress
) -> FeatureSet:
    feature_set = FeatureSet(features, _memory(manifest, features, cache))
    place = manifest.layout(features)
    missing = [path for path in (place.folder, place.patches) if path is not None and not os.path.isdir(path)]
    if missing:
        feature_set.add(
            "error", "folder", f"folder {missing[0]} does not exist", "correct the path in the manifest, or add it again"
        )
        return feature_set
    _match(feature_set, manifest, roster, place)
    broken: dict[str, BadFile] = {}
    for done, (slide, (path, patches)) in enumerate(feature_set.files.items(), 1):
        try:
            feature_set.facts[slide] = feature_set.memory.facts(path, patches, anew=deep)
        except BadFile as error:
            broken[slide] = error
        progress("looking at feature files", done, len(feature_set.files))
    _tell_broken(feature_set, broken)
    _compare(feature_set)
    _positions(feature_set)
    if deep:
        _bodies(feature_set, progress)
    return feature_set


def _memory(manifest: Manifest, features: Features, cache: Path | None) -> Seen:
    name = f"{manifest.name}-{re.sub(r'[^A-Za-z0-9]+', '-', features.name)}"
    places = [manifest.home / ".seen" / f"{name}.{manifest.key_of(features)}.json"]
    if cache:
        places.append(cache / f"{name}.{manifest.key_of(features, shared=True)}.seen.json")
    return Seen(places, (features.folder, features.patches))


def _contents(feature_set: FeatureSet, deep: bool, progress: Progress) -> None:
    """The hash of every file, which is what makes the identity of a dataset."""
    files = {slide: feature_set.files[slide] for slide in feature_set.facts}
    feature_set.contents, broken, unseen = feature_set.memory.contents(files, progress)
    _tell_broken(feature_set, broken)
    if unseen:
        what = f"{counted(len(unseen), 'slide')} whose features changed while the size and the time of change of the file did not"
        feature_set.add("warning" if deep else "note", "unseen", what, ids=unseen)


def _tell_broken(feature_set: FeatureSet, broken: Mapping[str, BadFile]) -> None:
    """One finding for each kind of fault, and for each file where a kind has few files with different faults."""
    by_kind: dict[str, list[tuple[str, BadFile]]] = defaultdict(list)
    for slide, error in broken.items():
        by_kind[error.kind].append((slide, error))
    for kind, cases in by_kind.items():
        first, faults = cases[0][1], {error.what for _, error in cases}
        if len(cases) == 1 or (len(faults) > 1 and len(cases) <= APART):
            for _, error in cases:
                feature_set.add("error", kind, f"{error.path.name} {error.what}", error.do)
        else:
            what = f"{len(cases)} files, of which {first.path.name} {first.what}"
            feature_set.add("error", kind, what, first.do, [slide for slide, _ in cases])


def _match(feature_set: FeatureSet, manifest: Manifest, roster: Roster, place: Layout) -> None:
    """Which file is whose."""
    here: dict[str, Path] = {}
    for path in place.files():
        other = here.setdefault(slide_of(path.name), path)
        if other != path:
            feature_set.add(
                "error", "two-files", f"{other.name} and {path.name} are both of the same slide", "remove one of them"
            )
    roster.unmatched -= here.keys()
    if not here:
        feature_set.add("error", "no-files", f"no .{place.format} files in {place.folder}", "correct the path in the manifest")
        return
    if not roster.samples:  # without labels, all there is
        feature_set.files = {id: (path, place.patches_of(path)) for id, path in here.items()}
        return
    by_case = _by_case(
        [id for id in here if id not in roster.excluded], [s.id for s in roster.samples if not roster.slides.get(s.id)]
    )
    _kinds(feature_set, by_case)
    for sample in roster.samples:
        feature_set.slides[sample.id] = roster.slides.get(sample.id) or tuple(by_case[sample.id])
    wanted = [slide for slides in feature_set.slides.values() for slide in slides]
    feature_set.files = {slide: (here[slide], place.patches_of(here[slide])) for slide in wanted if slide in here}
    missing = [slide for slide in wanted if slide not in here] + [id for id, slides in feature_set.slides.items() if not slides]
    unused = {id: path for id, path in here.items() if id not in feature_set.files and id not in roster.excluded}
    if missing:
        _tell_missing(feature_set, manifest, place, missing, list(unused), of=len(wanted))
    if unused:
        feature_set.add(
            "note", "unlisted", f"{counted(len(unused), 'file')} of slides that are not in the label table", ids=sorted(unused)
        )


def _by_case(files: Iterable[str], cases: Iterable[str]) -> dict[str, list[str]]:
    """Case -> its slides, where the name of a file begins with the case: `TCGA-3C-AALI-01Z-00-DX1` or `12_3`."""
    slides: dict[str, list[str]] = {case: [] for case in cases}
    for file in files:
        ends = [len(file), *(m.start() for m in reversed(list(re.finditer(r"[-_. ]", file))))]
        if (case := next((file[:end] for end in ends if file[:end] in slides), None)) is not None:
            slides[case].append(file)
    return slides


def _kinds(feature_set: FeatureSet, by_case: Mapping[str, Sequence[str]]) -> None:
    """The kinds of slides that cases have by the names of their files: stains, or normal tissue, may be among them."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for case, slides in by_case.items():
        for slide in slides:
            kinds[kind_of(slide, case)].append(slide)
    if 1 < len(kinds) <= 12:  # more are names, not kinds
        usual = max(kinds, key=lambda kind: len(kinds[kind]))
        counts = ", ".join(f"{len(slides):,} {kind}" for kind, slides in sorted(kinds.items()))
        what = f"slides of cases are found by their names and are of {len(kinds)} kinds, all of which are used: {counts}"
        others = [slide for kind, slides in kinds.items() if kind != usual for slide in slides]
        feature_set.add("warning", "kinds", what, "leave out what is not meant: --exclude FILE with one id a line", others)


def _tell_missing(
    feature_set: FeatureSet, manifest: Manifest, place: Layout, missing: Sequence[str], unused: Sequence[str], of: int
) -> None:
    bare = {_letters(file): file for file in unused}
    misnamed = {}
    for id in missing:
        key = _letters(id)
        near = [
            file
            for plain, file in bare.items()
            if min(len(plain), len(key)) > 3 and (plain.startswith(key) or key.startswith(plain))
        ]
        if key in bare or len(near) == 1:
            misnamed[id] = bare.get(key) or near[0]
    if misnamed:
        pairs = [f"{id} (file {file})" for id, file in misnamed.items()]
        what = f"{counted(len(misnamed), 'slide')} whose file has another name than the slide has in the label table"
        feature_set.add("error", "misnamed", what, "rename the files, or the slides in the table", pairs)
    if absent := [id for id in missing if id not in misnamed]:
        leave_out, first = pasted(absent), ""
        if len(absent) > MOST:
            path = kept(manifest.home / f"{manifest.name}-missing.txt", absent)
            leave_out, first = quote(str(path)), f", the first {MOST} are {', '.join(absent[:MOST])}; all are in {path}"
        what = (
            f"{len(absent)} of {counted(max(of, len(absent)), 'slide')} without a .{place.format} file in {place.folder}{first}"
        )
        do = f"extract them, or leave them out everywhere: milbench data add {manifest.name} --exclude {leave_out}"
        feature_set.add("error", "missing", what, do, () if first else absent)


def _compare(feature_set: FeatureSet) -> None:
    """What is odd about a file beside the others, or beside what the manifest says."""
    _widths(feature_set)
    _attributes(feature_set)
    _copies(feature_set)
    _forms(feature_set)


def _widths(feature_set: FeatureSet) -> None:
    """Files of another width than most, or than the encoder's; features that are no numbers."""
    facts, width = feature_set.facts, feature_set.in_dim
    if wrong := {slide: file.d for slide, file in facts.items() if file.d != width}:
        what = f"{counted(len(wrong), 'slide')} not {width} wide as the others"
        do = "they are of another encoder: extract them again"
        feature_set.add("error", "width", what, do, [f"{slide} ({d})" for slide, d in wrong.items()])
    known = ENCODERS.get(feature_set.features.encoder)
    if facts and known and known != width:
        feature_set.add(
            "warning", "encoder-width", f"features are {width} wide, those of {feature_set.features.encoder} are {known}"
        )
    if bad := [slide for slide, file in facts.items() if file.nonfinite]:
        feature_set.add("error", "nan", f"{counted(len(bad), 'slide')} with NaN or infinite values", "extract them again", bad)


def _attributes(feature_set: FeatureSet) -> None:
    """Files whose attributes name another magnification, patch size or encoder than the manifest."""
    features, facts = feature_set.features, feature_set.facts
    for key in ("magnification", "patch_size"):
        asked = getattr(features, key)
        other = {slide: file.says[key] for slide, file in facts.items() if asked and file.says.get(key, asked) != asked}
        if other:
            what = f"{counted(len(other), 'file')} of another {key.replace('_', ' ')} than {asked} by their attributes"
            ids = [f"{slide} ({value:g})" for slide, value in other.items()]
            feature_set.add("error", key.replace("_", "-"), what, "give the folder that belongs to it", ids)
    named = {str(file.says["encoder"]) for file in facts.values() if "encoder" in file.says}
    asked = _letters(features.encoder)
    if others := sorted(name for name in named if asked not in _letters(name) and _letters(name) not in asked):
        feature_set.add("warning", "encoder", f"files name their encoder {', '.join(others)}")


def _letters(name: str) -> str:
    """A name by its letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _copies(feature_set: FeatureSet) -> None:
    """Slides with the same features."""
    same: dict[str, list[str]] = defaultdict(list)
    for slide, file in feature_set.facts.items():
        same[file.digest].append(slide)
    if copies := [" = ".join(slides) for slides in same.values() if len(slides) > 1]:
        feature_set.add(
            "warning",
            "copies",
            f"{counted(len(copies), 'group')} of slides with the same features under several names",
            ids=copies,
        )


def _forms(feature_set: FeatureSet) -> None:
    """Files whose arrays have an unusual form, and files without positions."""
    facts = feature_set.facts
    if squeezed := [slide for slide, file in facts.items() if file.squeezed]:
        feature_set.add("note", "squeezed", f"{counted(len(squeezed), 'file')} of shape (1, n, d), read as (n, d)", ids=squeezed)
    if double := [slide for slide, file in facts.items() if file.dtype not in ("float16", "float32")]:
        feature_set.add(
            "note", "dtype", f"{counted(len(double), 'file')} of {facts[double[0]].dtype}, read as float32", ids=double
        )
    if len(facts) > 1 and all(file.n == 1 for file in facts.values()):
        feature_set.add("warning", "one-patch", "every slide has one patch only: are these vectors of whole slides?")
    without = [slide for slide, file in facts.items() if not file.coords]
    if without and len(without) < len(facts):
        do = "extract them again, or give --patches"
        feature_set.add(
            "error", "coords", f"{counted(len(without), 'slide')} without positions, while others have them", do, without
        )
    elif without:
        hint = ", or a folder of CLAM's patches files (--patches) " if feature_set.features.format == "pt" else " "
        feature_set.add("warning", "coords", f"no positions in the files{hint}: aggregators that need them are skipped")


def _positions(feature_set: FeatureSet) -> None:
    """The distance of neighbouring patches, and what is odd about positions."""
    facts = {slide: file for slide, file in feature_set.facts.items() if file.coords}
    _steps(feature_set, facts)
    if twice := {slide: file.duplicates for slide, file in facts.items() if file.duplicates}:
        what = f"{counted(len(twice), 'slide')} with several patches at one position"
        feature_set.add("warning", "duplicates", what, ids=[f"{slide} ({count:,})" for slide, count in twice.items()])
    many_patches = {slide: file for slide, file in facts.items() if file.n >= 20}  # fewer may lie apart by chance
    if loose := [slide for slide, file in many_patches.items() if file.aligned < 0.5]:
        what = f"{counted(len(loose), 'slide')} whose patches lie on no lattice: most have no neighbour at the usual distance"
        taken = ", ".join(f"{step:g}" for step in sorted({feature_set.steps[slide] for slide in loose})[:3])
        do = f"{taken} px are taken for it; where that is wrong, give it: milbench data add ... --step PIXELS --replace"
        feature_set.add("warning", "off-lattice", what, "" if feature_set.features.step else do, loose)
    _axes(feature_set, facts)
    apart = {
        slide: file.lattice
        for slide, file in many_patches.items()
        if file.lattice
        and file.aligned >= 0.5
        and abs(file.lattice - feature_set.steps[slide]) > max(1.0, 0.02 * feature_set.steps[slide])
    }
    if apart:
        slide, real = next(iter(apart.items()))
        said = f"{feature_set.steps[slide]:g} as their files or the manifest say"
        what = f"{counted(len(apart), 'slide')} whose patches lie {real:g} px apart, not {said}"
        do = "were they cut with another stride? Then give it: milbench data add ... --step PIXELS --replace"
        feature_set.add("warning", "stride", what, do, list(apart))


def _axes(feature_set: FeatureSet, facts: Mapping[str, Facts]) -> None:
    """Slides whose positions cannot be (x, y), by the slide's size or by their patches files."""
    exchanged = feature_set.features.swap_xy
    wrong = {slide: file.fits[not exchanged] for slide, file in facts.items() if file.fits and not file.fits[exchanged]}
    if swapped := [slide for slide, other in wrong.items() if other]:
        order = "(x, y) in their files, not (y, x) as --swap-xy says" if exchanged else "(y, x) in their files, not (x, y)"
        what = f"{counted(len(swapped), 'slide')} whose positions are {order}, by the size of the slide or their patches files"
        do = f"add the features again {'without' if exchanged else 'with'} --swap-xy, and with --replace"
        feature_set.add("warning", "swapped", what, do, swapped)
    if outside := [slide for slide, other in wrong.items() if not other]:
        what = f"{counted(len(outside), 'slide')} with patches beyond the edges of the slide that their attributes give"
        feature_set.add("warning", "outside", what, "are positions level-0 pixels? Extract them again", outside)


def _steps(feature_set: FeatureSet, facts: Mapping[str, Facts]) -> None:
    """The distance of neighbours on every slide: of the manifest, else of the file, else as most neighbours lie."""
    # Between patches on no lattice the commonest distance is chance.
    seen = {slide: file.lattice for slide, file in facts.items() if file.n < 20 or file.aligned >= 0.5}
    steps = {slide: feature_set.features.step or file.step or seen.get(slide) for slide, file in facts.items()}
    if not any(steps.values()):
        steps = {slide: file.lattice for slide, file in facts.items()}
    usual = Counter(step for step in steps.values() if step).most_common(1)
    feature_set.steps = {slide: step or (usual[0][0] if usual else 1.0) for slide, step in steps.items()}
    if alone := [slide for slide, step in steps.items() if not step and not facts[slide].lattice and facts[slide].n > 1]:
        taken = f"; the usual {usual[0][0]:g} px are taken" if usual else ""
        what = f"{counted(len(alone), 'slide')} without two neighbouring patches, so their distance is unknown{taken}"
        do = "give it: milbench data add ... --step PIXELS --replace"
        feature_set.add("warning" if usual else "error", "step", what, do, alone)
    guessed = [slide for slide, step in seen.items() if not feature_set.features.step and not facts[slide].step and step]
    if guessed:
        sizes = Counter(f"{feature_set.steps[slide]:g}" for slide in guessed).most_common()
        spread = ", ".join(f"{step} px in {count:,}" for step, count in sizes[:3]) + (" and others" if len(sizes) > 3 else "")
        what = f"no file says how far patches lie apart; taken from their positions: {spread}"
        feature_set.add("note", "lattice", what, ids=guessed if len(guessed) < len(facts) else ())


def _bodies(feature_set: FeatureSet, progress: Progress) -> None:
    """Read every feature."""
    nan, zero, constant, broken = [], [], [], []
    for done, slide in enumerate(feature_set.facts, 1):
        progress("looking at every feature", done, len(feature_set.facts))
        try:
            features, _ = read_file(*feature_set.files[slide])
        except BadFile as error:
            broken.append((slide, error))
            continue
        if count := int((~np.isfinite(features)).any(axis=1).sum()):
            nan.append(f"{slide} ({count:,} of {len(features):,} patches)")
        elif count := int((features == 0).all(axis=1).sum()):
            zero.append(f"{slide} ({count:,} of {len(features):,} patches)")
        elif len(features) > 1 and (features == features[0]).all():
            constant.append(slide)
    if nan:
        # It is now known of all patches.
        feature_set.findings = [finding for finding in feature_set.findings if finding.kind != "nan"]
        feature_set.add("error", "nan", f"{counted(len(nan), 'slide')} with NaN or infinite values", "extract them again", nan)
    if zero:
        feature_set.add("warning", "zero", f"{counted(len(zero), 'slide')} with features that are all zero", ids=zero)
    if constant:
        feature_set.add(
            "warning", "constant", f"{counted(len(constant), 'slide')} whose patches all have the same features", ids=constant
        )
    for slide, bad in broken:
        feature_set.add("error", bad.kind, f"{bad.path.name} {bad.what}", bad.do, [slide])


def counts(examined: Examined) -> list[dict[str, Any]]:
    """One row for each split, fold and part: how many samples, cases, and samples of each class or with an event."""
    roster, names = examined.roster, examined.roster.stratum_names(examined.manifest)
    sample = {s.id: s for s in roster.samples}
    rows = []
    for split, folds in roster.splits.items():
        for number, fold in enumerate(folds):
            for part, ids in fold._asdict().items():
                strata: Mapping[int, int] = Counter(sample[id].stratum for id in ids)
                by_class = {name: strata.get(i, 0) for i, name in enumerate(names)}
                cases = len({sample[id].case_id for id in ids})
                rows.append(
                    {"split": split, "fold": number, "part": part, "samples": len(ids), "cases": cases, "classes": by_class}
                )
    return rows
