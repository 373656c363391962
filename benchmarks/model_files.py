"""Measure a model file from the start of the process to the last prediction.

python benchmarks/model_files.py --write exported --network resnet18     both formats, with new weights
python benchmarks/model_files.py --predict exported/model.onnx --images 10000     or model.pt2, which torch opens
"""

import environment  # noqa: F401

# isort: split

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from common import CLASSES, print_result, since_start
from numpy.typing import NDArray

SHAPE = (32, 32, 3)
BATCH = 250


def write(folder: Path, network: str) -> None:
    """Write model.onnx and model.pt2 of a network with new weights."""
    import torch

    from cifar_pipeline.inference.onnx_export import OnnxTemplate, exported_program
    from cifar_pipeline.models.build import NormalizedModel
    from cifar_pipeline.models.lenet import LeNet
    from cifar_pipeline.models.zoo import torchvision_network

    torch.manual_seed(0)
    net = LeNet(3, 32, CLASSES) if network == "lenet" else torchvision_network(3, 32, CLASSES, network)
    pixels = NormalizedModel(net, 0.5, 0.5)
    folder.mkdir(parents=True, exist_ok=True)
    model = OnnxTemplate.of(pixels, SHAPE, "softmax").filled(pixels.state_dict(), {})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    torch.export.save(exported_program(pixels, SHAPE, "softmax"), folder / "model.pt2")


def predict_onnx(path: Path, images: NDArray[np.uint8], threads: int) -> tuple[float, float]:
    """Predict with ONNX Runtime; returns the seconds until imported and until loaded."""
    from cifar_pipeline.inference.onnx_session import OnnxSession

    imported = since_start()
    session = OnnxSession.open(path.parent, threads, "cpu")
    loaded = since_start()
    session.predict(images, BATCH)
    return imported, loaded


def predict_pt2(path: Path, images: NDArray[np.uint8], threads: int) -> tuple[float, float]:
    """Predict with torch.export, as its documentation shows; returns the same as `predict_onnx`."""
    import torch

    torch.set_num_threads(threads)
    imported = since_start()
    network = torch.export.load(path).module()
    loaded = since_start()
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            network(torch.from_numpy(images[start : start + BATCH]))
    return imported, loaded


def main() -> None:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("--write", type=Path)
    arguments.add_argument("--network", default="lenet")
    arguments.add_argument("--predict", type=Path)
    arguments.add_argument("--images", type=int, default=10_000)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    if options.write:
        write(options.write, options.network)
        print_result(written=str(options.write))
        return
    images = np.random.default_rng(0).integers(0, 256, (options.images, *SHAPE), np.uint8)
    predict = predict_onnx if options.predict.suffix == ".onnx" else predict_pt2
    imported, loaded = predict(options.predict, images, options.threads)
    total = since_start()
    speed = options.images / (total - loaded)
    print_result(seconds=total, imports=imported, load=loaded - imported, images_per_second=speed)


if __name__ == "__main__":
    main()
