"""Side: 10,000 images asked of a model file, from the start of the process to the last answer.

python benchmarks/model_files.py --write exported --network resnet18     both formats, with new weights
python benchmarks/model_files.py --ask exported/model.onnx --images 10000     or model.pt2, which torch opens
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from side import CLASSES, answer, since_start

SHAPE = (32, 32, 3)
BATCH = 250


def write(folder: Path, network: str) -> None:
    """Write model.onnx and model.pt2 of a network with new weights."""
    import torch

    from cifar_pipeline.inference.onnx_export import OnnxTemplate, exported_program
    from cifar_pipeline.models.lenet import LeNet
    from cifar_pipeline.models.wrappers import NormalizedModel
    from cifar_pipeline.models.zoo import torchvision_network

    torch.manual_seed(0)
    net = LeNet(3, 32, CLASSES) if network == "lenet" else torchvision_network(3, 32, CLASSES, network)
    pixels = NormalizedModel(net, 0.5, 0.5)
    folder.mkdir(parents=True, exist_ok=True)
    model = OnnxTemplate.of(pixels, SHAPE, "softmax").filled(pixels.state_dict(), {})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    torch.export.save(exported_program(pixels, SHAPE, "softmax"), folder / "model.pt2")


def ask_onnx(path: Path, images: NDArray[np.uint8], threads: int) -> tuple[float, float]:
    """The seconds to import and to load; then the answers."""
    from cifar_pipeline.inference.onnx_session import OnnxSession

    imported = since_start()
    session = OnnxSession.open(path.parent, threads, "cpu")
    loaded = since_start()
    session.predict(images, BATCH)
    return imported, loaded


def ask_pt2(path: Path, images: NDArray[np.uint8], threads: int) -> tuple[float, float]:
    """The same by torch, as its documentation says."""
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
    arguments.add_argument("--ask", type=Path)
    arguments.add_argument("--images", type=int, default=10_000)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    if options.write:
        write(options.write, options.network)
        answer(written=str(options.write))
        return
    images = np.random.default_rng(0).integers(0, 256, (options.images, *SHAPE), np.uint8)
    ask = ask_onnx if options.ask.suffix == ".onnx" else ask_pt2
    imported, loaded = ask(options.ask, images, options.threads)
    total = since_start()
    speed = options.images / (total - loaded)
    answer(seconds=total, imports=imported, load=loaded - imported, images_per_second=speed)


if __name__ == "__main__":
    main()
