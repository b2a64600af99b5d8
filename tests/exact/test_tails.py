"""The picture and the sentence about tails of samples."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.image import imread

from workflow.diffusion.distances import MEASURES, compare
from workflow.figures.tails import tails
from workflow.figures.words import findings

COUNT = 4000


def drawn():
    """Student data, samples of the same law, and of a normal one."""
    rng = np.random.default_rng(1)
    data = abs(rng.standard_t(3, (2 * COUNT, 1)))
    samples = {"neural": abs(rng.standard_t(3, (COUNT, 1))), "ve": abs(rng.normal(size=(COUNT, 1)))}
    measures = {"tail_error": MEASURES["tail_error"]}
    distances = {
        name: {
            measure: one.plain()
            for measure, one in compare(
                torch.from_numpy(x), torch.from_numpy(data), measures
            ).items()
        }
        for name, x in samples.items()
    }
    return data, samples, distances


def test_tails_are_drawn_and_their_errors_told(tmp_path):
    """A caption with every error, its interval and the floor; a picture that is not empty."""
    data, samples, distances = drawn()
    file, caption = tails(data, samples, distances, tmp_path)
    pixels = imread(tmp_path / file)
    assert pixels[..., :3].std() > 0.05
    for name in samples:
        value = distances[name]["tail_error"]["value"]
        assert f"{name} {value:.3g} (" in caption
    assert f"{distances['ve']['tail_error']['floor']:.3g} between two sets" in caption


def test_the_sentence_ranks_samples_and_names_those_that_differ():
    """The normal samples are told from the data, those of the same law are not."""
    found = drawn()[2]
    assert found["ve"]["tail_error"]["low"] > found["ve"]["tail_error"]["floor_high"]
    (text,) = [t for t in findings({"estimators": {"x": {}}, "tails": found}) if "quantiles" in t]
    assert text.index("neural") < text.index("ve 0.") and "ve seen to differ" in text
    alone = {"neural": found["neural"]}
    (text,) = [t for t in findings({"estimators": {"x": {}}, "tails": alone}) if "quantiles" in t]
    assert "none is told from the data" in text
    assert not any("quantiles" in t for t in findings({"estimators": {"x": {}}}))
