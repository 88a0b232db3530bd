"""The quickstarts of README, docs and the notebook, with no package that only training needs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from possam.pictures.config import read_config
from possam.pictures.files import MODELS, shipped_models
from possam.pictures.load import DEFAULT, describe

REPOSITORY = Path(__file__).resolve().parents[2]
EXTRAS = (
    *("pandas", "scipy", "pyarrow", "pycocotools", "panopticapi", "snakemake", "submitit"),
    *("mlflow", "dvc", "matplotlib", "jinja2", "markdown_it", "rasterio", "shapely"),
)
GUARD = f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS!r}))"
"""As if they were not installed: a module that is ``None`` cannot be imported."""


def python_of(page: Path) -> str:
    """The first block of Python on a page."""
    found = re.search(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert found, page
    return found[1]


def cells_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


needs_models = pytest.mark.skipif(
    DEFAULT not in shipped_models(), reason=f"data/models has no {DEFAULT}: make models"
)


@needs_models
def test_quickstarts_run_anywhere_without_any_extra(tmp_path: Path) -> None:
    picture = Image.new("RGB", (128, 128), (86, 150, 70))
    ImageDraw.Draw(picture).ellipse((40, 30, 90, 80), fill=(215, 45, 40))
    picture.save(tmp_path / "picture.png")
    pages = [REPOSITORY / "README.md", REPOSITORY / "docs/own-data.md"]
    code = "\n".join([GUARD, "import possam", "assert 'torch' not in sys.modules"])
    code += "\n" + "\n".join(map(python_of, pages))
    code += "\n" + cells_of(REPOSITORY / "docs/quickstart.ipynb")
    code += "\nassert len(results) == 3 and result.id_map.shape == (128, 128)\n"
    (tmp_path / "quickstart.py").write_text(code)
    subprocess.run([sys.executable, "quickstart.py"], cwd=tmp_path, check=True)
    assert max(Image.open(tmp_path / "overlay.png").size) >= 640


def test_shipped_models_belong_to_the_shipped_towers() -> None:
    for name in shipped_models():
        config = read_config(MODELS / name)
        assert config.name == name and config.weights is not None and config.synthetic
        now = describe(MODELS / name / config.weights.file).model_copy(update={"name": name})
        assert now == config, "possam export it again"
        card = (MODELS / name / "README.md").read_text()
        assert "(synthetic)" in card and config.weights.sha256 in card
