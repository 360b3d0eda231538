"""What the nested proof of the default recipe takes on the real network of ../shared, and what it says.

Run from the repository's root: ``python -m benchmarks.cifar10_proof``. The gain of the correction is proved inside the
1,000 verified images, which is what `verifix correct` does after it has corrected. What it should say is in
cifar10_vgg11.json: the gain on 10,000 test images. Writes JSON to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.tasks import IMAGES
from verifix import prove
from verifix.io.checkpoints.read import read_checkpoint
from verifix.io.data.open import open_data
from verifix.io.models import build_model


def main() -> None:
    """Prove, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data and networks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cifar10_proof.json"))
    parser.add_argument("--recipe", default="auto")
    arguments = parser.parse_args()
    shared = arguments.shared
    model = build_model(f"py:{shared / 'networks/vgg11_bn_cifar.py'}:build", None)
    read_checkpoint(shared / "networks/vgg11_bn_cifar10_sym25.safetensors").load_into(model)
    proof = prove(
        model.eval(),
        open_data(shared / "data/cifar10_verified.parquet", IMAGES),
        recipe=arguments.recipe,
        verified_from="unseen",
    )
    record = {
        "recipe": arguments.recipe,
        **proof.as_dict(),
        "peak_gigabytes": round(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9, 2),
        **environment(),
    }
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{proof.summary()}\n{proof.seconds:.0f} s\n")


if __name__ == "__main__":
    main()
