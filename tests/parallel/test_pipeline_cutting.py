"""Where layers are cut, and which worlds fit a mesh."""

import pytest
import torch
from torch import nn

from phalanx.errors import UserError
from phalanx.parallel.balance import cut, layers_of, weights_of
from phalanx.parallel.collective import Solo
from phalanx.parallel.mesh import Mesh
from phalanx.parallel.strategies import strategy_of


def _layers(*widths: int) -> list[nn.Module]:
    return [nn.Linear(width, width) for width in widths]


def test_the_heaviest_stage_is_as_light_as_can_be() -> None:
    assert cut(_layers(2, 2, 2, 2), 2, [4, 1, 1, 2]) == [0, 1, 4]
    assert cut(_layers(2, 2, 2, 2), 3, [1, 1, 1, 9]) == [0, 1, 3, 4]


def test_a_stage_without_learning_is_avoided() -> None:
    layers = [nn.Linear(2, 2), nn.Tanh(), nn.Tanh(), nn.Linear(2, 2)]
    assert cut(layers, 2, [0, 0, 9, 9]) in ([0, 1, 4], [0, 2, 4], [0, 3, 4])
    with pytest.raises(UserError, match="2 of them with parameters that learn, cannot be cut into 3 stages"):
        cut(layers, 3, [1, 1, 1, 1])


def test_layers_that_share_parameters_stay_together() -> None:
    layers = _layers(2, 2, 2, 2)
    layers[2] = layers[0]
    assert cut(layers, 2, [1, 1, 1, 1]) == [0, 3, 4]
    layers[3] = layers[0]
    with pytest.raises(UserError, match="share parameters"):
        cut(layers, 2, [1, 1, 1, 1])


def test_more_stages_than_layers() -> None:
    with pytest.raises(UserError, match="give stages=2 or fewer"):
        cut(_layers(2, 2), 3, [1, 1])


def test_nested_layers_are_flattened_and_others_are_shown_how() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    assert len(layers_of(nn.Sequential(inner, nn.Linear(2, 2)))) == 3
    with pytest.raises(UserError, match=r"torch.nn.Sequential\(embedding, \*blocks, head\)"):
        layers_of(nn.Linear(2, 2))


def test_weights_of_layers() -> None:
    layers = [nn.Linear(2, 2), nn.Tanh()]
    assert weights_of(layers, "parameters", None) == [6, 0]
    assert weights_of(layers, "uniform", None) == [1, 1]
    assert weights_of(layers, "type:linear", None) == [1, 0]
    slow, fast = nn.Linear(1500, 1500), nn.Linear(1500, 1)
    times = weights_of([slow, fast], "time", torch.ones(64, 1500))
    assert len(times) == 2
    assert min(times) > 0
    for wrong in ("type:conv", "type:(", "time", "size"):
        with pytest.raises(UserError, match="balance"):
            weights_of(layers, wrong, None)


def test_meshes() -> None:
    assert Mesh.of(8, pipeline=2, tensor=2) == Mesh(2, 2, 2)
    with pytest.raises(UserError, match="6 workers cannot be 4 stages x whole copies; give 4 or 8 workers"):
        Mesh.of(6, pipeline=4)
    with pytest.raises(UserError, match="give 4 workers"):
        Mesh.of(6, pipeline=2, data=2)
    with pytest.raises(UserError, match="stages must be a whole number"):
        Mesh.of(6, pipeline=0)


def test_options_that_cannot_be() -> None:
    from phalanx.contracts import Recipe

    recipe = Recipe(nn.Sequential(nn.Linear(2, 2)), nn.functional.mse_loss, torch.optim.AdamW, torch.device("cpu"))
    for name, options, told in (
        ("pipeline", {"zero": 2}, "zero=0 or 1"),
        ("pipeline", {"stages": 2}, "1 workers cannot be 2 stages"),
        ("pipeline", {"stages": 1, "micro_batches": 0}, "multiple of accumulate"),
        ("zero1", {"stage": 4}, "stages 1, 2 and 3"),
        ("zero2", {"offload": "nvme"}, "'none' or 'cpu'"),
    ):
        with pytest.raises(UserError, match=told):
            strategy_of(name, options).prepare(recipe, Solo())
