"""The paths of everything that the pipeline reads and writes.

The constants are patterns with ``{wildcards}``, which :class:`Layout` fills in for one scale.
``{prefix}`` is empty for the ``paper`` scale (``results/table1.csv``) and ``<scale>/`` for the
others (``results/mini/table1.csv``); ``{scale}`` is the one whose data are used. A stage's result
is represented by a small file that is written last; large files lie beside it.
"""

from pathlib import Path

from possam.params.project import Project
from possam.params.tables import EXTERNAL, NO_SEED, TRAINING_FREE

WORLD = "data/{scale}/world/manifest.json"
ASSET = "data/{scale}/assets/{asset}.record.json"
RAW = "data/{scale}/raw/{asset}"
DATASET = "data/{scale}/datasets/{dataset}_{split}/manifest.json"
FEATURES = "data/{scale}/features/{tower}/{dataset}_{split}/manifest.json"
TEXT = "data/{scale}/text"
"""Text embeddings of vocabularies, by content: see :mod:`possam.stages.models`."""
RUN = "results/{prefix}runs/{run}/seed{seed}/run.json"
SUPERSEDED = "results/{prefix}superseded/{run}/seed{seed}"
"""Where a training's work is kept whose code, parameters or inputs have changed since."""
EVALUATION = "results/{prefix}evaluations/{run}/seed{seed}/{benchmark}/{condition}/evaluation.json"
EXTERNAL_EVALUATION = EVALUATION.replace("{run}/seed{seed}", f"{{external}}/seed{NO_SEED}").replace(
    "{condition}", EXTERNAL
)
"""An evaluation of another system's predictions."""
TRAINING_FREE_EVALUATION = EVALUATION.replace(
    "{run}/seed{seed}", f"{{system}}/seed{NO_SEED}"
).replace("{condition}", TRAINING_FREE)
"""An evaluation of a system that trains nothing."""
TABLE_CSV = "results/{prefix}{table}.csv"
TABLE_MD = "results/{prefix}{table}.md"
TABLE_TEX = "results/{prefix}{table}.tex"
TABLE_CARD = "results/{prefix}{table}.json"
TABLE_METRICS = "results/{prefix}{table}.metrics.json"
RUN_LOCK = ".running"
"""Lock in a run's folder, held while a process trains the run."""
TRACKING = "results/{prefix}{table}.tracking.json"
FIGURE_PNG = "results/{prefix}figures/{figure}.png"
FIGURE_PDF = "results/{prefix}figures/{figure}.pdf"
FIGURE_CARD = "results/{prefix}figures/{figure}.json"
REPORT = "reports/{prefix}report.html"
STORED = "stored/{scale}"
"""What DVC stores: hard links to finished results (:mod:`possam.pipeline.stored`)."""
REHEARSAL = "results/{prefix}rehearsal/rehearsal.json"
KEPT = "results/{prefix}measured"
KEPT_REPORT = "reports/{prefix}measured.html"


class Layout:
    """Paths of one scale below ``root`` (the repository).

    Attributes:
        world: folder of the procedural world's archives.
        assets: folder of fetched files and their records.
        text: folder of the vocabularies' text embeddings.
        results: folder of this scale's results.
        report: the page with every table and figure.
        rehearsal: record of the scale's last rehearsal.
        kept, kept_report: copies that git holds of the tables (a folder) and of the page.
    """

    def __init__(self, project: Project, *, root: Path = Path(".")) -> None:
        self.project, self.root = project, root
        self.world = self._path(WORLD).parent
        self.assets = self._path(ASSET, asset="any").parent
        self.text = self._path(TEXT)
        self.results = self._path(TABLE_CSV, table="any").parent
        self.report, self.rehearsal = self._path(REPORT), self._path(REHEARSAL)
        self.kept, self.kept_report = self._path(KEPT), self._path(KEPT_REPORT)

    def _path(self, pattern: str, **wildcards: str | int) -> Path:
        scale = {"scale": self.project.data, "prefix": self.project.prefix}
        return self.root / pattern.format(**scale, **wildcards)

    def asset_record(self, asset: str) -> Path:
        """Record of one fetched (and unpacked) asset."""
        return self._path(ASSET, asset=asset)

    def raw(self, asset: str) -> Path:
        """Folder of one unpacked archive."""
        return self._path(RAW, asset=asset)

    def dataset(self, dataset: str, split: str) -> Path:
        """Folder of one converted data set."""
        return self._path(DATASET, dataset=dataset, split=split).parent

    def features(self, tower: str, dataset: str, split: str) -> Path:
        """Folder of one tower's cached features of one data set."""
        return self._path(FEATURES, tower=tower, dataset=dataset, split=split).parent

    def run(self, run: str, seed: int) -> Path:
        """Folder of one training: a run with one seed."""
        return self._path(RUN, run=run, seed=seed).parent

    def superseded(self, run: str, seed: int) -> Path:
        """Folder of the trainings of a run and seed that were set aside."""
        return self._path(SUPERSEDED, run=run, seed=seed)

    def evaluation(self, run: str, seed: int, benchmark: str, condition: str) -> Path:
        """Folder of one evaluation; each variant's statistics lie in a folder below it."""
        test = {"benchmark": benchmark, "condition": condition}
        return self._path(EVALUATION, run=run, seed=seed, **test).parent

    def table(self, table: str) -> Path:
        """CSV of one table; Markdown, TeX and the provenance card lie beside it."""
        return self._path(TABLE_CSV, table=table)

    def tracking(self, table: str) -> Path:
        """Record of a table's last ingestion into the tracking server."""
        return self._path(TRACKING, table=table)

    def figure(self, figure: str) -> tuple[Path, Path, Path]:
        """PNG, PDF and card of one figure."""
        patterns = (FIGURE_PNG, FIGURE_PDF, FIGURE_CARD)
        png, pdf, card = (self._path(pattern, figure=figure) for pattern in patterns)
        return png, pdf, card
