"""A model in use: picture files in, classes with probabilities out, by the code that the training is measured by."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from cifar_pipeline.console import Refusal
from cifar_pipeline.data.pictures import Unreadable, read_picture
from cifar_pipeline.inference.facts import ModelFacts
from cifar_pipeline.inference.session import Session

DECIMALS = 6


@dataclass(frozen=True)
class Prediction:
    """What a file shows: classes with their probabilities, the likeliest first; or why it shows nothing."""

    file: str
    ranking: tuple[tuple[str, float], ...]
    error: str = ""

    def as_json(self) -> dict[str, object]:
        """The class, its probability, and those of all that were ranked; or the error."""
        file = {"file": self.file} if self.file else {}
        if self.error:
            return {**file, "error": self.error}
        probabilities = {name: round(value, DECIMALS) for name, value in self.ranking}
        name, value = next(iter(probabilities.items()))
        return {**file, "class": name, "probability": value, "probabilities": probabilities}


@dataclass(frozen=True)
class Predictor:
    """An open model with what its outputs mean."""

    facts: ModelFacts
    session: Session

    @staticmethod
    def open(folder: Path, threads: int = 1, accelerator: str = "auto") -> "Predictor":
        """Open the model in `folder` as `Session.open` does.

        Raises `Refusal` where there is none, where it is damaged or unsafe, or where it is not as it says.
        """
        session = Session.open(folder, threads, accelerator)
        return Predictor(ModelFacts.of(session, folder), session)

    def checked_top(self, asked: int | None, usual: int) -> int:
        """How many classes to rank: as many as were asked for, or the usual number where nobody asked.

        Raises `Refusal` where there are not so many classes.
        """
        known = len(self.facts.classes)
        if asked is not None and not 1 <= asked <= known:
            raise Refusal(f"--top {asked}: this model knows {known} classes; write a number from 1 to {known}.")
        return min(usual, known) if asked is None else asked

    def probabilities(self, images: np.ndarray, batch_size: int = 1000) -> np.ndarray:
        """Probabilities `[N, K] float32` of raw pictures `[N, H, W, C] uint8`."""
        return self.session.answers(images, batch_size)[1]

    def ranking(self, images: np.ndarray, top: int) -> list[tuple[tuple[str, float], ...]]:
        """For each raw picture the `top` likeliest classes with their probabilities."""
        probabilities = self.probabilities(images)
        places = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        values = np.take_along_axis(probabilities, places, axis=1)
        classes = self.facts.classes
        return [
            tuple((classes[place], value) for place, value in zip(row, numbers, strict=True))
            for row, numbers in zip(places.tolist(), values.tolist(), strict=True)
        ]

    def predictions(self, files: Iterable[Path], batch_size: int, top: int) -> Iterator[Prediction]:
        """What each file shows, in order. A bad file stops nothing.

        In memory are twice so many pictures: while the network looks at some, the next are read.
        """
        waiting: deque[tuple[list[Path], Future[list[np.ndarray | str]]]] = deque()
        with ThreadPoolExecutor(1) as reader:
            for batch in _batches(files, batch_size):
                waiting.append((batch, reader.submit(_read_all, batch, self.facts)))
                if len(waiting) > 1:
                    yield from self._answers(*waiting.popleft(), top)
            for batch, read in waiting:
                yield from self._answers(batch, read, top)

    def _answers(self, batch: list[Path], read: Future[list[np.ndarray | str]], top: int) -> Iterator[Prediction]:
        pictures = read.result()
        good = [picture for picture in pictures if not isinstance(picture, str)]
        rankings = iter(self.ranking(np.stack(good), top) if good else [])
        for path, picture in zip(batch, pictures, strict=True):
            if isinstance(picture, str):
                yield Prediction(str(path), (), picture)
            else:
                yield Prediction(str(path), next(rankings))


def threads_for(machine_threads: int | str, cores: int, reading: int = 0) -> int:
    """How many threads a model computes on: as many as `machine.threads` says, or (auto) a thread for each core.

    `reading` of the cores are left to threads that read files.
    """
    return max(1, cores - reading) if machine_threads == "auto" else int(machine_threads)


def _read_all(paths: list[Path], facts: ModelFacts) -> list[np.ndarray | str]:
    return [_read(path, facts) for path in paths]


def _read(path: Path, facts: ModelFacts) -> np.ndarray | str:
    """The picture, or why there is none."""
    try:
        return read_picture(path, facts.shape, facts.fit)
    except Unreadable as error:
        return str(error)


def _batches(files: Iterable[Path], size: int) -> Iterator[list[Path]]:
    waiting = iter(files)
    while batch := list(islice(waiting, size)):
        yield batch
